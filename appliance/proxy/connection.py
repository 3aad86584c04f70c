"""One request on a connection of aiohttp's pool.

A client session also handles cookies, redirects, logins, uploads and compression for each request, which takes longer
than the rest. A forwarded request needs none of it. Connections, TLS and the parser of responses are aiohttp's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from aiohttp import (
    ClientConnectionError,
    ClientConnectionResetError,
    ClientOSError,
    ClientRequest,
    ClientResponseError,
    ClientTimeout,
    ConnectionTimeoutError,
    TCPConnector,
)
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from yarl import URL


class RawResponse(Protocol):
    """What is read of a response, of aiohttp's own too."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> StreamReader: ...

    def close(self) -> None:
        """Release the connection, for the next request if the body was read; safe to call twice."""


class ConnectionResponse:
    """The head of a response, and the connection that its body comes from."""

    def __init__(self, connection: Connection, status: int, headers: Mapping[str, str], content: StreamReader) -> None:
        self.status, self.headers, self.content = status, headers, content
        self._connection: Connection | None = connection
        content.on_eof(self._release)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            if self.content.exception() is None:
                self.content.set_exception(ClientConnectionError("Connection closed"))

    def _release(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None


class Origin:
    """A scheme, host and port that requests are sent to."""

    def __init__(self, url: URL, connector: TCPConnector, connect_seconds: float | None) -> None:
        # aiohttp reads from it where to connect to.
        self._request = ClientRequest("POST", url.origin(), loop=asyncio.get_running_loop())
        self.host: str = self._request.headers["Host"]
        self._connector = connector
        self._timeout = ClientTimeout(total=None, connect=connect_seconds)

    async def post(self, target: str, headers: Mapping[str, str], body: bytes) -> ConnectionResponse:
        """Send a body, and return the response once its head is there; raises as `ClientSession.request` does."""
        head = _head(target, headers)
        try:
            connection = await self._connector.connect(self._request, [], self._timeout)
        except TimeoutError as error:
            raise ConnectionTimeoutError from error
        try:
            protocol = connection.protocol
            if protocol is None or protocol.transport is None or not protocol.is_connected():
                raise ClientOSError from ClientConnectionResetError("Cannot write to closing transport")
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            protocol.transport.write(head + body)
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        except HttpProcessingError as error:
            connection.close()
            info, status = self._request.request_info, error.code
            raise ClientResponseError(info, (), status=status, message=error.message, headers=error.headers) from error
        except BaseException:
            connection.close()
            raise
        return ConnectionResponse(connection, message.code, message.headers, content)


def _head(target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join(lines)
    if head.count("\r") != len(headers) or head.count("\n") != len(headers) or "\0" in head:
        raise ValueError("a header has a line break or a null byte; this is a bug")
    return f"{head}\r\n\r\n".encode()
