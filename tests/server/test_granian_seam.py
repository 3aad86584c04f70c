"""The private attributes of Granian that `server/granian_server.py` uses: a new Granian that changes one fails here."""

from __future__ import annotations

import asyncio
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.server.common import AbstractServer
from granian.server.embed import AsyncWorker, Server
from litestar import Litestar
from packaging.requirements import Requirement
from packaging.version import Version
from server_process import free_port

from appliance.server.listener import Listener

PIECE = b"z" * 65536

_ROOT = Path(__file__).parents[2]

# Names that each function of Granian uses, and that ours overrides, sets or relies on.
_USES = (
    (AbstractServer.__init__, {"_shd", "wrks"}),
    (AbstractServer._init_shared_socket, {"_shd"}),
    (Server._serve, {"startup", "shutdown"}),
    (Server.startup, {"_init_shared_socket", "ssl_ctx", "_spawn_workers"}),
    (Server._spawn_worker, {"_shd", "ssl_ctx"}),
    (Server.shutdown, {"_stop_workers"}),
    (Server._stop_workers, {"wrks", "terminate", "join", "clear"}),
    (AsyncWorker.terminate, {"_sig"}),
)


@pytest.mark.parametrize(("function", "names"), _USES, ids=lambda value: getattr(value, "__qualname__", None))
def test_granian_uses_what_is_replaced(function: object, names: set[str]) -> None:
    """Its functions read and write the attributes that ours set and override."""
    code = inspect.unwrap(function).__code__  # type: ignore[arg-type]  # each is a function

    assert names <= set(code.co_names)


async def test_a_message_is_taken_within_the_call_unless_the_client_is_slow() -> None:
    """Chunks are sent without waiting for what `send` returns, which is a future only if the client is slow."""
    sent = 0

    class Story(Litestar):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # Any: as Granian calls it
            nonlocal sent
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            sending: Any = None
            # The client is in this thread, and reads only once this waits.
            while not asyncio.isfuture(sending) and sent < 10_000:
                sending = send({"type": "http.response.body", "body": PIECE, "more_body": True})
                sent += 1
            await sending
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    port = free_port()
    listener = Listener(Story([], openapi_config=None), "127.0.0.1", port)
    serving = asyncio.create_task(listener.serve())
    async with asyncio.timeout(20):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = await reader.read()
        writer.close()
    listener.stop()
    await asyncio.wait_for(serving, 20)

    assert received.count(b"z") == sent * len(PIECE)
    assert 1 < sent < 10_000


def test_a_socket_is_made_of_a_descriptor() -> None:
    """It takes the descriptor, that it is no Unix socket, and the backlog."""
    assert list(inspect.signature(SocketHolder).parameters) == ["fd", "uds", "backlog"]


def test_the_tls_settings_have_the_same_order() -> None:
    """Whether there is TLS, chain, key, password, oldest protocol, authorities, revocations, whether clients verify."""
    server = Server(object(), interface=Interfaces.ASGINL)

    assert server.ssl_ctx == (False, None, None, None, "tls1.3", None, [], False)
    assert list(inspect.signature(AbstractServer.build_ssl_context).parameters)[1:] == [
        "cert",
        "key",
        "password",
        "proto",
        "ca",
        "crl",
        "client_verify",
    ]


def test_workers_can_be_asked_whether_they_live() -> None:
    """The ones that have ended are not ended again."""
    assert {"is_alive", "join", "terminate"} <= set(dir(AsyncWorker))


def test_the_versions_that_may_be_installed_are_those_of_this_test() -> None:
    """A minor version may change private attributes, so the next one is not allowed until this test has passed it."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    required = next(Requirement(each) for each in project["dependencies"] if each.startswith("granian"))
    installed = Version(version("granian"))

    assert installed in required.specifier
    assert f"{installed.major}.{installed.minor + 1}" not in required.specifier
    for name in ("cpu", "gpu"):
        assert f"granian=={installed}\n" in (_ROOT / "requirements" / f"{name}.txt").read_text()
