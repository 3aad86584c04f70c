"""The log: one stream, of one form, without secrets."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging, structlog
from appliance.core import logging_setup as logs
logs.configure({format!r}, {level!r}, {secrets!r})
def fail(token):
    raise ValueError("it broke")
structlog.get_logger("appliance.x").info("model.state_changed", uri="http://key-4711-abc@host", text='quo"ted-secret')
logging.getLogger("vllm.engine").info("from %s", "vLLM")
logging.getLogger("vllm.engine").error("vLLM failed")
try:
    fail("the prompt")
except ValueError:
    structlog.get_logger("appliance.x").exception("model.unexpected_error")
"""


def _log_of_program(format: str = "json", level: str = "info", secrets: tuple[str, ...] = ()) -> str:  # noqa: A002
    code = PROGRAM.format(format=format, level=level, secrets=secrets)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_events_of_all_loggers_have_the_same_keys() -> None:
    """Ours and a library's have the same keys: event, level, logger, timestamp."""
    events = [json.loads(line) for line in _log_of_program().splitlines()]

    assert [event["event"] for event in events] == [
        "model.state_changed",
        "from vLLM",
        "vLLM failed",
        "model.unexpected_error",
    ]
    assert all({"event", "level", "logger", "timestamp"} <= set(event) for event in events)


def test_secrets_are_redacted() -> None:
    """Wherever it stands in the line, and however JSON writes it."""
    spoken = _log_of_program(secrets=("key-4711-abc", 'quo"ted-secret'))

    assert "4711" not in spoken
    assert "ted-secret" not in spoken
    assert spoken.count("***") == 2
    assert [json.loads(line) for line in spoken.splitlines()]


def test_a_traceback_has_no_locals() -> None:
    """Where it failed is told, what was in the variables is not."""
    spoken = _log_of_program()

    assert "it broke" in spoken
    assert "the prompt" not in spoken


def test_a_terminal_shows_ours_and_errors_of_others() -> None:
    """On the console a library's steps are left out, its errors are not; with debug everything is there."""
    calm, everything = _log_of_program("console"), _log_of_program("console", "debug")

    assert "model.state_changed" in calm
    assert "from vLLM" not in calm
    assert "vLLM failed" in calm
    assert "from vLLM" in everything


def test_a_text_of_a_client_cannot_control_the_terminal() -> None:
    """On a terminal a path shows what would act there; a traceback and a library's own lines stay as they are."""
    code = r"""
import logging, structlog
from appliance.core import logging_setup as logs
logs.configure("console", "info", ())
structlog.get_logger("appliance.x").info("request.ended", path="/\x1b[31m\r\nforged", other="\x1b]0;a\x07")
logging.getLogger("appliance.y").info("two\nlines \x1b[2J")
"""
    spoken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr

    assert "\x1b" not in spoken
    assert "\r" not in spoken
    assert len(spoken.splitlines()) == 3
    assert "forged" in spoken.splitlines()[0]


def test_a_new_config_applies_to_loggers_in_use() -> None:
    """Level, format and secrets are those of the last call, for every logger."""
    code = """
import structlog
from appliance.core import logging_setup as logs
log = structlog.get_logger("appliance.x")
logs.configure("json", "info", ["first-secret"])
log.debug("unheard"); log.info("heard", text="first-secret second-secret")
logs.configure("console", "debug", ["first-secret", "second-secret"])
log.debug("heard.too", text="first-secret second-secret")
logs.configure("json", "error")
log.info("unheard"); log.error("last")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, third = done.stderr.splitlines()

    assert json.loads(first) | {"event": "heard", "text": "*** second-secret"} == json.loads(first)
    assert "heard.too" in second
    assert "text='*** ***'" in second
    assert json.loads(third)["event"] == "last"


WRITE = r"""
import os, sys
from appliance.core import logging_setup as logs
from appliance.core.logging_setup import captured_output
logs.configure({format!r}, "info", ("key-4711-abc",))
with captured_output():
    CODE
print("after")
"""


def _written(code: str, format: str = "json", *exit_codes: int) -> subprocess.CompletedProcess[str]:  # noqa: A002
    program = WRITE.replace("{format!r}", repr(format)).replace("CODE", code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, *exit_codes), done.stderr
    return done


def test_captured_output_is_cut_into_events_between_characters() -> None:
    """Nothing of a long line is lost, secrets do not come out, and output is the program's own again afterwards."""
    done = _written("print('ab' + 'é' * 20_000); print('key-4711-abc'); print('begun', end='')")
    texts = [json.loads(line)["text"] for line in done.stderr.splitlines()]

    assert texts[-2:] == ["***", "begun"]
    assert "".join(texts[:-2]) == "ab" + "é" * 20_000
    assert max(len(text.encode()) for text in texts) <= 16 * 1024
    assert done.stdout == "after\n"


def test_a_character_may_come_in_two_pieces() -> None:
    """Bytes are put together before they are read as text; what is no text is escaped."""
    done = _written(r"[sys.stdout.buffer.write(each) for each in (b'\xc3', b'\xa9\n', b'\xff\n')]")

    assert [json.loads(line)["text"] for line in done.stderr.splitlines()] == ["é", r"\xff"]


def test_on_a_console_output_stays_as_it_is_written() -> None:
    """People read it, and debuggers and progress bars write parts of lines."""
    done = _written("print('50 %', end='\\r'); print('wrong', file=sys.stderr)", "console")

    assert (done.stdout, done.stderr) == ("50 %\nafter\n", "wrong\n")


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    """The error of writing the event is not an event again."""
    # 120 is Python's own: at its end it cannot flush standard error, unless PYTHONUNBUFFERED is set.
    done = _written("os.close(2); print('lost'); print('lost', file=sys.stderr)", "json", 120)

    assert done.stdout == "after\n"
