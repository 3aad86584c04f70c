"""
The bodies of requests as they come in: no larger, deeper or slower than they may be.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from litestar.exceptions import InternalServerException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from appliance.config.server import ServerSection
from appliance.errors import CallError, SlowBodyError
from appliance.protocols.clients import AnyRequest, ClientGoneError, discard
from appliance.protocols.compression import decompressed
from appliance.protocols.depth import is_deeper
from appliance.tensors.wire import LENGTH_HEADER
from appliance.upstream import form

# A length of more digits is none, which is for the protocol to say.
_DIGITS = 20


@dataclass(slots=True)
class Intake:
    """
    Reads what a client sends, as `server` allows.
    """

    server: ServerSection

    def apply(self, server: ServerSection) -> None:
        """
        Hold to other settings from now on; `max_body_bytes` stays what it was when the server began.
        """
        self.server = server

    async def body(self, request: AnyRequest) -> bytes:
        """
        The body of a request, a form or JSON.

        Raises:
            CallError: it is JSON that is nested too deeply.
            SlowBodyError: it did not come in time.
            RequestEntityTooLarge: it is larger than the application allows.
        """
        body = await self._whole(request)
        if not form.is_form(request.headers.get("content-type", "")):
            self.require_flat(body)
        return body

    async def plain_body(self, request: AnyRequest) -> bytes:
        """
        The body of a request to a protocol that knows compression and binary tensors, decompressed.

        Raises:
            CallError: it is not compressed as it says, or in a way nobody here knows, or nested too deeply.
            SlowBodyError: it did not come in time.
            RequestEntityTooLarge: it is larger, compressed or not.
        """
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        body = await decompressed(await self._whole(request), coding, self.server.max_body_bytes)
        length = request.headers.get(LENGTH_HEADER, "")
        self.require_flat(body[: int(length)] if length.isdecimal() and len(length) < _DIGITS else body)
        return body

    async def _whole(self, request: AnyRequest) -> bytes:
        """
        The bytes as they came.

        A client that is still sending does not hear a refusal: its connection breaks first.
        So what is too large is read to its end, and thrown away, before it is refused.
        """
        seconds = self.server.timeouts.body_seconds
        try:
            async with asyncio.timeout(seconds) as bound:
                return await request.body()
        except InternalServerException as error:
            # What Litestar has for a client that leaves, and for nothing else that can happen here.
            raise ClientGoneError from error
        except RequestEntityTooLarge:
            await discard(request.receive)
            raise
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise SlowBodyError(f"The body did not come within server.timeouts.body_seconds of {seconds:g}") from error

    def require_flat(self, body: bytes) -> None:
        """
        Return when JSON is nested no deeper than it may be.

        Raises:
            CallError: it is.
        """
        most = self.server.limits.json_depth
        if is_deeper(body, most):
            raise CallError(
                f"The body is nested too deeply; server.limits.json_depth allows {most} levels", code="invalid_json"
            )
