"""A server under test with what the golden files must not show: its ports and its folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
from contract.golden import masked
from server_process import ServerProcess, free_port, open_stream, wait_until

TESTS = Path(__file__).parent.parent

# Headers that follow from the time or the body.
_OMITTED_HEADERS = {"date", "content-length"}

# Headers of every answer; one test looks at them.
COMMON_HEADERS = {
    "server",
    "cache-control",
    "cross-origin-resource-policy",
    "referrer-policy",
    "x-content-type-options",
    "x-frame-options",
    "x-request-id",
}

# Headers whose values differ from run to run.
_VOLATILE_HEADERS = {"retry-after", "x-request-id", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"}


class Server(ServerProcess):
    """``appliance serve`` of one of the configs of this suite, in a folder of its own."""

    def __init__(self, config: Path, folder: Path, *overrides: str, grpc: bool = False, **variables: str) -> None:
        self.folder = folder
        # A connection for each request: a server that drains closes them.
        self.client = httpx.Client(timeout=30, verify=False, limits=httpx.Limits(max_keepalive_connections=0))
        self.file = folder / config.name
        self.file.write_text(config.read_text())
        self.grpc_port, self.probe_port = free_port(), free_port()
        ports = [f"server.probe_port={self.probe_port}", *([f"server.grpc_port={self.grpc_port}"] if grpc else [])]
        given = {"PYTHONPATH": str(TESTS), "FOLDER": str(folder), "XDG_CACHE_HOME": str(folder), **variables}
        super().__init__(self.file, folder / "log", *ports, *overrides, variables=given)

    def open_gate(self, name: str) -> None:
        """Let a model go on that waits for a file."""
        (self.folder / name).touch()

    def close_gate(self, name: str) -> None:
        """Have a model wait again."""
        (self.folder / name).unlink()

    def states(self) -> Mapping[str, str]:
        """The state of each model by its name, empty while nobody listens; from the probe port, which wants no key."""
        _, body = self.get("/readyz", port=self.probe_port)
        return {model["name"]: model["state"] for model in body["models"]} if body else {}

    def wait_until(self, model: str, state: str, seconds: float = 30) -> None:
        """Wait until a model is in a state."""
        wait_until(lambda: self.states().get(model) == state, seconds, lambda: f"{self.states()}\n{self.log_tail()}")

    def answer(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        body: object = None,
        port: int | None = None,
        omits: Collection[str] = frozenset(COMMON_HEADERS),
    ) -> dict[str, Any]:  # Any: JSON values
        """Status, headers and body of an answer with what is volatile masked; `body` is sent as JSON.

        Headers that are usual are left out: those of `omits`, and a content type of JSON.
        """
        data = json.dumps(body).encode() if body is not None else content
        sent = {**({} if data is None else {"Content-Type": "application/json"}), **(headers or {})}
        url = f"http://{self.host}:{port or self.port}{path}"
        response = self.client.request(method, url, headers=sent, content=data)
        shown = {
            name: _shown_header(name, value)
            for name, value in sorted(response.headers.items())
            if name not in {*omits, *_OMITTED_HEADERS}
        }
        if omits and shown.get("content-type") == "application/json":
            del shown["content-type"]
        headed = {"headers": shown} if shown else {}
        return {"status": response.status_code, **self.masked({**headed, "body": _decoded(response)})}

    def masked(self, value: Any) -> Any:  # Any: JSON values
        """The same as `golden.masked`, with the folder of this server."""
        return masked(value, {str(self.folder): "FOLDER"})

    def kill(self) -> None:
        """End it, whatever it does."""
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


def _shown_header(name: str, value: str) -> str:
    """A volatile value by a word, and the methods of `Allow` in one order."""
    if name == "allow":
        return ", ".join(sorted(value.split(", ")))
    return "VOLATILE" if name in _VOLATILE_HEADERS else value


def _decoded(response: httpx.Response) -> object:
    """JSON as it is, anything else as its lines."""
    try:
        return response.json()
    except ValueError:
        return response.text.splitlines()


@contextmanager
def streamed_chat(server: Server, model: str, state: str = "running") -> Iterator[None]:
    """A streamed chat that is running, or queued, and whose answer nobody reads."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True}

    def count() -> int:
        models: list[dict[str, Any]] = server.get("/readyz", port=server.probe_port)[1]["models"]
        return next(int(each[state]) for each in models if each["name"] == model)

    before = count()
    with closing(open_stream(server.port, "/v1/chat/completions", body)):
        wait_until(lambda: count() > before, 10, server.log_tail)
        yield
