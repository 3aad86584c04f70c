"""What users' classes print, log and warn of: events of the log, which stays one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, wait_until

MODELS = """
import io, logging, sys, threading, warnings
from appliance import Model

print("imported")
logging.getLogger().addHandler(logging.StreamHandler())

class Printing(Model):
    def load(self):
        print("loading...", end="", flush=True)
        io.TextIOWrapper(sys.stdout.buffer, "utf-8", write_through=True).write("wrapped\\n")
        return super().load()

    def predict(self, payload, headers=None):
        print("two\\nlines")
        print("50 %\\r100 %", file=sys.stderr)
        sys.stdout.buffer.write("bytes é\\n".encode())
        sys.stdout.reconfigure(line_buffering=True)
        thread = threading.Thread(target=print, args=("of a thread",))
        thread.start()
        thread.join()
        warnings.warn("old")
        logging.getLogger("theirs").warning("logged %s", "so")
        logging.getLogger("theirs").warning("%d", "no number")
        print("x" * 40_000)
        print("begun", end="")
        return {"predictions": []}
"""


@pytest.fixture
def printing(serve: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerProcess:
    """A server whose model writes in every way there is."""
    (tmp_path / "printing_models.py").write_text(MODELS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = {"name": "one", "class": "generative", "engine": {"python": "printing_models:Printing"}}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"models": [model]}))
    return serve(file=file).wait_until_ready(60)


def test_what_a_models_code_prints_is_events_of_the_log(printing: ServerProcess) -> None:
    """Whole lines with their stream and the request's id, at import, in load and in answers; the log stays JSON."""
    status, _ = printing.ask("/v1/models/one:predict", {"instances": [1]}, {"x-request-id": "my-id"})
    assert status == 200
    wait_until(lambda: "begun" in _texts(printing), 30, printing.log_tail)
    printing.stop()

    texts = _texts(printing)
    mine = {"two", "lines", "100 %", "bytes é", "begun"}
    assert {"imported", "loading...wrapped", "of a thread", *mine} <= texts.keys()
    assert {text for text, event in texts.items() if event.get("request_id") == "my-id"} >= mine
    assert (texts["two"]["stream"], texts["two"]["level"]) == ("stdout", "info")
    assert (texts["100 %"]["stream"], texts["100 %"]["level"]) == ("stderr", "warning")
    written = [event["text"] for event in printing.events() if event["event"] == "output.written"]
    assert sum(len(text) for text in written if not text.strip("x")) == 40_000
    assert max(map(len, texts)) <= 16 * 1024
    logged = {event["event"] for event in printing.events()}
    assert "logged so" in logged
    assert any("UserWarning: old" in event for event in logged)


def _texts(served: ServerProcess) -> Mapping[str, dict[str, Any]]:
    return {each["text"]: each for each in served.events() if each["event"] == "output.written"}
