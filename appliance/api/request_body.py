"""The bodies of requests as they come in: no larger, deeper or slower than they may be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from litestar.exceptions import InternalServerException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from appliance.api.compression import decompressed
from appliance.api.disconnect import AnyRequest, ClientDisconnectedError, before_body, discard
from appliance.config.server import ServerConfig, ServerLimitsConfig
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError, SlowRequestBodyError
from appliance.core.json_limits import has_more_members, is_deeper
from appliance.tensors.codec import LENGTH_HEADER

# A length of more digits is none, which is for the protocol to say.
_DIGITS = 20


def require_no_form(content_type: str) -> None:
    """Return where a body may be JSON.

    Raises:
        RequestError: the client says that it is a form.
    """
    if content_type.strip().lower().startswith("multipart/"):
        raise RequestError(f"Content-Type is {content_type[:80]!r}; this route takes application/json", status=415)


@dataclass(slots=True)
class BodyReader:
    """Reads what a client sends, as `server` allows."""

    server: ServerConfig

    def apply(self, server: ServerConfig) -> None:
        """Hold to other settings from now on; `max_body_bytes` stays what it was when the server began."""
        self.server = server

    async def body(self, request: AnyRequest) -> bytes:
        """The body of a request, decompressed; nothing else has looked at it.

        Raises:
            RequestError: it is not compressed as it says, or in a way nobody here knows.
            SlowRequestBodyError: it did not come in time.
            RequestEntityTooLarge: it is larger than the application allows, compressed or not.
        """
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        return await decompressed(await self._whole(request), coding, self.server.max_body_bytes)

    async def json(self, request: AnyRequest) -> bytes:
        """The body of a request, which is JSON with binary tensors after it where the headers say so.

        Raises:
            RequestError: the client says that it is a form; as `body` and `require_shape`.
            SlowRequestBodyError: it did not come in time.
            RequestEntityTooLarge: it is larger than the application allows.
        """
        async with before_body(request):
            require_no_form(request.headers.get("content-type", ""))
        body = await self.body(request)
        length = request.headers.get(LENGTH_HEADER, "")
        await self.require_shape(body[: int(length)] if length.isdecimal() and len(length) < _DIGITS else body)
        return body

    async def _whole(self, request: AnyRequest) -> bytes:
        """The bytes as they came.

        A client that is still sending does not hear a refusal: its connection breaks first.
        So what is too large is read to its end, and thrown away, before it is refused.
        """
        seconds = self.server.timeouts.body_seconds
        try:
            async with asyncio.timeout(seconds) as bound:
                return await request.body()
        except InternalServerException as error:
            # What Litestar has for a client that leaves, and for nothing else that can happen here.
            raise ClientDisconnectedError from error
        except RequestEntityTooLarge:
            await discard(request.receive)
            raise
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise SlowRequestBodyError(
                f"The body did not come within server.timeouts.body_seconds of {seconds:g}"
            ) from error

    async def require_shape(self, body: bytes) -> None:
        """Return when JSON is nested no deeper, and has no more members, than it may.

        Raises:
            RequestError: it is, or has.
        """
        await off_loop(len(body), _require_shape, body, self.server.limits)


def _require_shape(body: bytes, limits: ServerLimitsConfig) -> None:
    if is_deeper(body, limits.json_depth):
        raise RequestError(
            f"The body is nested too deeply; server.limits.json_depth allows {limits.json_depth} levels",
            code="invalid_json",
        )
    if has_more_members(body, limits.json_members):
        raise RequestError(
            f"The body has too many members; server.limits.json_members allows {limits.json_members}",
            code="invalid_json",
        )
