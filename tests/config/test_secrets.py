"""
What came from outside the file is never shown.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config import Loaded
from appliance.errors import ConfigError

SECRET = "hunter2-hunter2"

# Every kind of fault that quotes a value, with a secret for the value.
FAULTS = {
    "a type": "server: {port: '${env:SECRET}'}",
    "a choice": "logging: {level: '${env:SECRET}'}",
    "a pattern": "expect: [{path: '${env:SECRET}'}]",
    "a part of a value": "expect: [{path: 'a-${env:SECRET}'}]",
    "a file": "logging: {format: '${file:secret}'}",
    "a name": "x-a: 1",
    "an engine argument": "x-a: 1",
}


@pytest.mark.parametrize("line", FAULTS.values(), ids=FAULTS)
def test_a_secret_is_in_no_message_and_no_traceback(
    line: str, tmp_path: Path, load_text: Callable[..., Loaded]
) -> None:
    """
    A fault of a value from outside shows `***`, and the error carries the value nowhere.
    """
    (tmp_path / "secret").write_text(SECRET)
    text = f"""\
{line}
models:
  - {{name: '${{env:SECRET}}', class: generative, storage: {{uri: file:///a}}}}
  - {{name: '${{env:SECRET}}', class: '${{env:SECRET}}', storage: {{uri: file:///a}}}}
  - name: c
    class: generative
    storage: {{uri: file:///a}}
    engine: {{args: {{seed: '${{env:SECRET}}', load_format: '${{env:SECRET}}'}}}}
"""

    with pytest.raises(ConfigError) as caught:
        load_text(text, environ={"SECRET": SECRET, "APPLIANCE__SERVER__DRAIN_SECONDS": SECRET})

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.problems)
    assert "***" in shown
    assert SECRET not in shown


def test_a_secret_near_a_choice_is_not_hinted_at(load_text: Callable[..., Loaded]) -> None:
    """
    There is no did-you-mean for a value from outside: it would give most of the value away.
    """
    text = "models: [{name: a, class: generative, storage: {uri: '${env:URI}'}}]\nlogging: {level: '${env:LEVEL}'}\n"

    with pytest.raises(ConfigError) as caught:
        load_text(text, environ={"LEVEL": "infoo", "URI": "pypy://a==1"})

    assert [problem.path for problem in caught.value.problems] == ["models[0].storage.uri", "logging.level"]
    assert "did you mean" not in str(caught.value)
    assert "pypy" not in str(caught.value)


def test_texts_from_outside_are_handed_on_for_redaction(load_text: Callable[..., Loaded]) -> None:
    """
    The texts of the environment that stand in the config as text are its secrets, and nothing else is.
    """
    text = """\
models:
  - name: a
    class: generative
    storage: {uri: 'hf://${env:BUCKET}/${env:UNSET:-default}'}
server: {port: '${env:PORT}'}
logging: {level: '${env:LEVEL}'}
"""
    environ = {
        "BUCKET": "private-bucket",
        "PORT": "9000",
        "LEVEL": "debug",
        "APPLIANCE__MODELS__A__CHAT_TEMPLATE": "hidden",
        "APPLIANCE__MODELS__A__ALIASES": '["alias"]',
        "APPLIANCE__SERVER__DRAIN_SECONDS": "7",
    }

    assert load_text(text, environ=environ).secrets == {"private-bucket", "hidden", "alias"}


def test_a_value_that_is_laid_over_takes_the_secret_with_it(load_text: Callable[..., Loaded]) -> None:
    """
    A secret that `--set` replaces is no part of the config any more.
    """
    text = "models: [{name: a, class: generative, storage: {uri: '${env:URI}'}}]\n"

    loaded = load_text(text, "models.a.storage.uri=file:///b", environ={"URI": "file:///a"})

    assert loaded.secrets == frozenset()
