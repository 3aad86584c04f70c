"""Names and fields of the log's events in one life of a server: start, requests, reload, drain."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from contract.golden import Golden
from contract.server import Server, streamed_chat
from server_process import wait_until

CHAT = "/v1/chat/completions"
MORE = """
  - name: more
    class: generative
    engine: {python: "contract.served_models:Echo", args: {load_gate: "${env:FOLDER}/load"}}
"""


class Reader:
    """Reads a log from where it stopped the last time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._read = 0

    def events(self) -> list[str]:
        """Level, name and fields of each kind of event of ours that came, once no more come."""
        size = -1
        while size != (size := self._server.log.stat().st_size):
            time.sleep(0.5)
        events = self._server.events()
        new, self._read = events[self._read :], len(events)
        return sorted({_described(event) for event in new if event["logger"].startswith("appliance")})


def _described(event: dict[str, Any]) -> str:
    fields = sorted(event.keys() - {"event", "level", "logger", "timestamp"})
    return f"{event['level']} {event['event']}: {', '.join(fields)}"


def test_events_and_probes_of_a_life(start: Callable[..., Server], golden: Golden) -> None:
    """Every event of each phase, and beside it what readiness says of the file."""
    server = start("small.yaml")
    text = server.file.read_text()
    log = Reader(server)
    events: dict[str, Sequence[str]] = {}
    probes: dict[str, object] = {}

    def reload(content: str) -> None:
        server.file.write_text(content)
        server.process.send_signal(signal.SIGHUP)

    def config() -> Any:
        return server.masked(server.get("/readyz")[1]["config"])

    server.open_gate("answer")
    server.wait_until("echo", "ready")
    events["start"] = log.events()

    for content in ("hi", "fail"):
        server.answer("POST", CHAT, body={"model": "echo", "messages": [{"role": "user", "content": content}]})
    server.answer("POST", CHAT, body={"model": "absent"})
    server.close_gate("answer")
    with streamed_chat(server, "echo"):
        pass  # a client that leaves
    wait_until(lambda: any(event.get("status") == 499 for event in server.events()), 10, server.log_tail)
    events["requests"] = log.events()

    server.open_gate("answer")
    reload(text.replace("server:", MORE + "server:"))
    wait_until(lambda: [model["state"] for model in config()["new_models"]] == ["loading"], 10, server.log_tail)
    probes["a model is brought"] = config()
    server.open_gate("load")
    server.wait_until("more", "ready")
    wait_until(lambda: not config()["new_models"], 10, server.log_tail)
    events["reload that adds a model"] = log.events()

    reload("models: [\n")
    wait_until(lambda: config()["error"] is not None, 10, server.log_tail)
    probes["the file is wrong"] = config()
    events["reload of a file that is wrong"] = log.events()

    reload(text + "  page: false\n")
    wait_until(lambda: bool(config()["restart_required"]), 10, server.log_tail)
    probes["the file needs a restart"] = config()
    events["reload that needs a restart"] = log.events()

    reload(text)
    wait_until(lambda: len(server.states()) == 1 and not config()["restart_required"], 20, server.log_tail)
    events["reload that takes the model away"] = log.events()

    server.close_gate("answer")
    with streamed_chat(server, "echo"):
        server.process.terminate()
        server.wait_until("echo", "draining")
        server.open_gate("answer")
        assert server.process.wait(30) == 0, server.log_tail()
    events["drain"] = log.events()

    golden.check("log_events.json", events)
    golden.check("probes_reload.json", probes)
