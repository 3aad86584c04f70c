"""`serve` on a terminal: what a person sees of a start, a first request, and the end."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from server_process import free_port, wait_until
from terminal import Terminal

from appliance.models.fetch import CONVERSION, FetchProgress
from appliance.server.terminal import download

_KEY = "sk-of-a-terminal-test"

_MODEL = """
import asyncio
from pathlib import Path
from appliance.openai import OpenAIGenerativeModel

class Model(OpenAIGenerativeModel):
    async def create_chat_completion(self, request, raw_request=None, context=None):
        for gate in "warm-up", "request":
            while Path(gate).exists():
                Path(f"{gate}.waits").touch()
                await asyncio.sleep(0.05)
        message = {"role": "assistant", "content": "Hi"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"id": "1", "object": "chat.completion", "created": 1, "model": self.name, "choices": choices}
"""


class _Store(ThreadingHTTPServer):
    """Has one file, and sends its second half only once `released` is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = bytes(64_000_000)
        self.released = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Store
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._send_head()

    def do_GET(self) -> None:
        self._send_head()
        content = self.server.content
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.server.released.wait(300)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[half:])

    def _send_head(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Write nothing."""


@pytest.fixture
def store() -> Iterator[_Store]:
    """A web server with a slow file."""
    with _Store() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture
def terminal(tmp_path: Path, store: _Store) -> Iterator[Terminal]:
    """A server with a Python model, whose file is being downloaded."""
    config = {
        "models": [
            {
                "name": "mine",
                "class": "generative",
                "storage": {"uri": f"http://127.0.0.1:{store.server_port}/weights.safetensors"},
                "engine": {"python": "my_model:Model"},
            }
        ],
        "server": {"port": free_port(), "host": "127.0.0.1", "api_keys": [{"name": "me", "value": _KEY}]},
        "storage": {"cache_dir": str(tmp_path / "cache"), "transfer": {"stall_seconds": 120}},
    }
    (tmp_path / "appliance.yaml").write_text(json.dumps(config))
    (tmp_path / "my_model.py").write_text(_MODEL)
    terminal = Terminal("serve", folder=tmp_path, NO_COLOR="1")
    try:
        yield terminal
    finally:
        terminal.close()


def _request(command: str) -> urllib.request.Request:
    """The request that a `curl` on the screen sends."""
    words = shlex.split(command.replace("\\\n", " ").replace("$API_KEY", _KEY))
    headers = dict(words[index + 1].split(": ", 1) for index, word in enumerate(words) if word == "-H")
    return urllib.request.Request(words[1], words[words.index("-d") + 1].encode(), headers)


def test_a_person_sees_a_model_that_failed(tmp_path: Path) -> None:
    """As the last line, with the reason; the server keeps running, as without a terminal."""
    model = {"name": "mine", "class": "generative", "engine": {"python": "absent_module:Model"}}
    server = {"port": free_port(), "host": "127.0.0.1"}
    (tmp_path / "appliance.yaml").write_text(json.dumps({"models": [model], "server": server}))
    terminal = Terminal("serve", folder=tmp_path, NO_COLOR="1")
    try:
        terminal.wait_for("Failed: mine: ")
        terminal.wait_for("Ctrl-C stops the server.")
        terminal.interrupt()
        code = terminal.wait()
    finally:
        terminal.close()

    assert code == 0, terminal.text
    assert "absent_module" in terminal.text.partition("Failed: mine: ")[2]


def test_a_person_sees_the_start_the_first_request_and_the_end(
    terminal: Terminal, store: _Store, tmp_path: Path
) -> None:
    """A bar, states, a `curl` that works; Ctrl-C says what it waits for, and a second one ends the server at once."""
    (tmp_path / "warm-up").touch()
    terminal.wait_for("mine █")
    store.released.set()
    terminal.wait_for("mine is proving: sending the warm-up request, ")
    (tmp_path / "warm-up").unlink()
    terminal.wait_for("Try it:")
    terminal.wait_for("}'\n")
    command = terminal.text.partition("Try it:\n")[2].partition("}'\n")[0] + "}'"
    with urllib.request.urlopen(_request(command), timeout=60) as response:
        answer = json.load(response)

    (tmp_path / "request").touch()
    waiting = threading.Thread(target=_send, args=(command,))
    waiting.start()
    wait_until((tmp_path / "request.waits").exists, 60)
    terminal.interrupt()
    terminal.wait_for("waiting for 1 request, ")
    last = terminal.text
    terminal.interrupt()
    code = terminal.wait()
    waiting.join()

    assert answer["choices"][0]["message"]["content"] == "Hi"
    assert " of 64.0 MB, " in last
    assert "Ready: http://127.0.0.1:" in last
    assert "Ctrl-C again ends at once" in last
    assert code == 130
    # Only the status line uses escape codes, to go to its own beginning.
    assert "\x1b[" not in terminal.raw.replace("\r\x1b[K", "")
    assert "[appliance." not in terminal.text
    assert "State." not in terminal.text


def _send(command: str) -> None:
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(_request(command), timeout=120)


def test_a_server_that_never_was_ready_stops_without_the_delay(terminal: Terminal) -> None:
    """No load balancer knows it, so SIGTERM during the download waits for nothing."""
    terminal.wait_for("mine █")
    terminal.process.send_signal(signal.SIGTERM)

    assert terminal.wait() == 0
    assert "delay_seconds=0 " in terminal.text


def test_ctrl_c_before_the_server_has_started_ends_it_quietly(tmp_path: Path) -> None:
    """The exit code is that of an interrupted command."""
    terminal = Terminal("serve", "-", folder=tmp_path)
    try:
        terminal.wait_for("reading -")
        terminal.interrupt()
        code = terminal.wait()
    finally:
        terminal.close()

    assert code == 130
    assert "Aborted" not in terminal.text
    assert "Traceback" not in terminal.text


def test_a_conversion_is_no_download_that_hangs() -> None:
    """It is named, with the seconds it has taken."""
    now = 0.0
    progress = FetchProgress(lambda: now)
    progress.update("model", 100, 100)
    now = 10.0
    progress.update(CONVERSION, 0, None)
    now = 22.0

    assert download(progress) == "is being converted from GGUF, 12 s"


def test_a_wait_for_the_store_is_no_download_that_hangs() -> None:
    """A rate limit is named by the time that is left of it."""
    progress = FetchProgress(lambda: 0.0)
    progress.update("model", 10, 100)
    progress.wait(30)

    assert download(progress) == "waits for the store, which is asked again in 30 s"
