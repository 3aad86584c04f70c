"""What the proxy uses of aiohttp beyond its documented API: a new aiohttp that changes it fails here."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from aiohttp import ClientRequest, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL


async def test_a_request_says_where_to_connect_to() -> None:
    """`Origin` makes one for all requests to a server, and reads its `Host`."""
    request = ClientRequest("POST", URL("http://one.example:8000"), loop=asyncio.get_running_loop())

    assert request.headers["Host"] == "one.example:8000"
    assert request.connection_key.host == "one.example"
    assert request.request_info.url == URL("http://one.example:8000")


def test_a_connector_gives_connections_to_whoever_has_a_request() -> None:
    """And each connection has a protocol, and goes back to the pool or is closed."""
    assert list(inspect.signature(TCPConnector.connect).parameters) == ["self", "req", "traces", "timeout"]
    assert {"close", "protocol", "release"} <= set(dir(Connection))


async def test_a_connector_makes_its_protocols_with_a_factory_that_can_be_replaced() -> None:
    """All its connections have the protocol that the factory returns."""
    connector: Any = TCPConnector()  # Any: the factory is private
    assert isinstance(connector._factory(), ResponseHandler)
    await connector.close()

    for create in (TCPConnector._create_direct_connection, TCPConnector._start_tls_connection):
        assert "_factory" in create.__code__.co_names


async def test_a_protocol_parses_responses_once_it_has_its_parameters() -> None:
    """Interim responses pass `feed_data`; the head of a response is read with its status, its headers and its body."""
    fed: list[int] = []

    class Handler(ResponseHandler):
        def feed_data(self, data: Any, size: int = 0) -> None:  # Any: the message and its body
            fed.append(data[0].code)
            super().feed_data(data, size)

    handler = Handler(asyncio.get_running_loop())
    handler.set_response_params(read_until_eof=True, auto_decompress=False)
    handler.data_received(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 2\r\n\r\n{}")
    await handler.read()
    message, content = await handler.read()

    assert not handler.is_connected()
    assert fed == [103, 200]
    assert (message.code, message.headers["x-a"]) == (200, "b")
    assert (content.read_nowait(1), content.read_nowait(9), content.at_eof()) == (b"{", b"}", True)
    assert {"on_eof", "exception", "set_exception"} <= set(dir(content))
