"""Bodies of requests, read within the limits on size, time and nesting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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

# A longer number is no length; the protocol reports it.
_MAX_DIGITS = 20


def require_no_form(content_type: str) -> None:
    """Return if a body of this content type may be JSON.

    Raises:
        RequestError: the content type is multipart.
    """
    if content_type.strip().lower().startswith("multipart/"):
        raise RequestError(f"Content-Type is {content_type[:80]!r}; this route takes application/json", status=415)


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Reads the bodies of requests within the limits of `server`, which a reload may change."""

    server: Callable[[], ServerConfig]

    async def body(self, request: AnyRequest) -> bytes:
        """Return the decompressed body of a request; nothing else has read it.

        Raises:
            RequestError: it is not compressed as its Content-Encoding says, or that is not supported.
            SlowRequestBodyError: it did not arrive in time.
            RequestEntityTooLarge: it is larger than `max_body_bytes`, compressed or not.
        """
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        return await decompressed(await self._receive(request), coding, self.server().max_body_bytes)

    async def json(self, request: AnyRequest) -> bytes:
        """Return the body of a request: JSON, followed by binary tensors if the headers say so.

        Raises: as `body` and `require_shape`, and
            RequestError: the content type is multipart.
        """
        async with before_body(request):
            require_no_form(request.headers.get("content-type", ""))
        body = await self.body(request)
        length = request.headers.get(LENGTH_HEADER, "")
        await self.require_shape(body[: int(length)] if length.isdecimal() and len(length) < _MAX_DIGITS else body)
        return body

    async def _receive(self, request: AnyRequest) -> bytes:
        """Return the body as it was sent.

        A client that is still sending does not read the response, because its connection breaks first. So a body that
        is too large is read to its end, and discarded, before it is rejected.
        """
        seconds = self.server().timeouts.body_seconds
        try:
            async with asyncio.timeout(seconds) as bound:
                return await request.body()
        except InternalServerException as error:
            # Litestar raises it if the client disconnects, and for nothing else that can happen here.
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
        """Return if JSON is not nested too deeply, and does not have too many members.

        Raises:
            RequestError: it is, or has.
        """
        await off_loop(len(body), _require_shape, body, self.server().limits)


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
