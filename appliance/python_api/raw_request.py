"""The request as HTTP has it, for models written in Python; the names are those of Starlette's, which KServe passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy
from yarl import URL

from appliance.core.model import ModelRequest
from appliance.core.request_context import current_context


class Client(NamedTuple):
    """The address that the request comes from."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class RawRequest:
    """The request as HTTP has it, without the API key; names of `headers` match in any case."""

    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    query: str = ""
    content: bytes = b""
    method: str = "POST"
    scheme: str = "http"
    client: Client | None = None
    """None if the request came over a Unix socket, or from this process."""
    state: SimpleNamespace = field(default_factory=SimpleNamespace)
    """Whatever methods of one request leave for each other."""

    @classmethod
    def of(cls, request: ModelRequest) -> RawRequest:
        """Return what HTTP has of a request."""
        headers = CIMultiDictProxy(CIMultiDict(request.headers))
        context = current_context()
        if context is None:
            return cls(headers, request.path, request.query, request.body)
        client = None if context.client is None else Client(*context.client)
        return cls(headers, request.path, request.query, request.body, context.method or "POST", context.scheme, client)

    @property
    def url(self) -> URL:
        """The requested URL."""
        path, query = self.path or "/", f"?{self.query}" if self.query else ""
        try:
            return URL(f"{self.scheme}://{self.headers.get('host', 'localhost')}{path}{query}", encoded=True)
        except ValueError:
            # The client's header names no host.
            return URL(f"{self.scheme}://localhost{path}{query}", encoded=True)

    @property
    def query_params(self) -> Mapping[str, str]:
        """The parameters of the query."""
        return MultiDictProxy(MultiDict(URL.build(query_string=self.query, encoded=True).query))

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies; empty if they are malformed."""
        try:
            return {name: morsel.value for name, morsel in SimpleCookie(self.headers.get("cookie", "")).items()}
        except CookieError:
            return {}

    async def body(self) -> bytes:
        """Return the body, decompressed."""
        return self.content

    async def json(self) -> Any:  # Any: JSON values
        """Return the body as JSON."""
        return msgspec.json.decode(self.content)

    async def is_disconnected(self) -> bool:
        """Return whether the client left; a method is cancelled then, so that one that runs hears False."""
        return False
