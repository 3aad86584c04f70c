"""Templates, paths and targets of adapters that come from elsewhere than the file itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config import LoadedConfig
from appliance.core.errors import ConfigError

HEAD = "models:\n- name: a\n  class: adapter\n  target: {url: http://x}\n  protocol:\n"
CHAT = f"{HEAD}    kind: completions\n    chat_template: "
HTTP = f"{HEAD}    kind: http\n    embeddings: "


def _problem(load_text: Callable[..., LoadedConfig], text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(text, environ=environ)
    (problem,) = caught.value.problems
    return f"{problem.line}:{problem.column}: {problem.message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{CHAT}${{env:SECRET}}", "7:20: is not a Jinja template in line 2"),
        (f"{HTTP}{{request: '{{}}', response: '${{env:SECRET}}'}}", "7:43: is not a JMESPath"),
        (f"{HTTP}{{request: '${{env:SECRET}}', response: a}}", "7:27: is not a Jinja template in line 2"),
    ],
)
def test_an_error_in_a_text_from_outside_does_not_quote_it(
    load_text: Callable[..., LoadedConfig], text: str, message: str
) -> None:
    """The location of the reference and the line in its text are shown, and nothing of the text itself."""
    assert _problem(load_text, text, SECRET="x\n{% hunter2 %}\n") == message


def test_a_target_from_outside_is_not_quoted(load_text: Callable[..., LoadedConfig]) -> None:
    """Neither the name itself nor one that is like it."""
    text = CHAT.replace("{url: http://x}", "${env:SECRET}") + "x{{ 1 }}"

    assert (
        _problem(load_text, text, SECRET="aa")
        == "4:11: is ***, the name of no model here; there are no other models here"
    )


def test_a_template_in_a_file_is_checked_too(load_text: Callable[..., LoadedConfig], tmp_path: Path) -> None:
    """The error has the line in the template's own file; a right template is accepted."""
    file = tmp_path / "chat.jinja"
    file.write_text("fine\n{% for %}\n")
    message = _problem(load_text, f"{CHAT}{file}")
    file.write_text("{{ messages }}")

    assert message.startswith("7:20: is ")
    assert "and line 2 of it is not Jinja" in message
    assert load_text(f"{CHAT}{file}").config.models


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("|\n      one\n        {% two %}\n", "9:9"),
        ("&anchor |-\n      one\n\n      {% two %}\n", "10:7"),
        (">\n      {% two %}\n", "7:20"),
        ("'{% two %}'", "7:21"),
        ('"{% two %}"', "7:21"),
        ('"one\\n{% two %}"', "7:20"),
    ],
)
def test_an_error_in_a_template_has_its_line_of_the_file(
    load_text: Callable[..., LoadedConfig], written: str, place: str
) -> None:
    """However the text is written; where its lines are not the file's, at its beginning."""
    assert _problem(load_text, f"{CHAT}{written}").startswith(
        f"{place}: is not a Jinja template: Encountered unknown tag"
    )
