"""What the dialects share: requests are read as all are, and sent to models as OpenAI requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
from litestar import Response

from appliance.api.body import BodyReader, require_no_form, without_byte_order_mark
from appliance.api.disconnect import AnyRequest, before_body, cancel_on_disconnect
from appliance.api.inner_requests import (
    decode_response,
    model_headers,
    openai_request,
    response_body,
    response_events,
)
from appliance.api.kserve_names import KServeNames
from appliance.config.models import EncoderConfig
from appliance.core.concurrency import off_loop
from appliance.core.model import DIALECT_PATHS, ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.models.health import HealthReport
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.responses.service import Responses
from appliance.tensors.codec import decode

Decoded = TypeVar("Decoded")

# Assumed of a body whose length is unknown.
_LARGE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelClient:
    """Reads requests of dialects, and sends models the OpenAI requests that they are translated to."""

    manager: ModelManager
    kserve_names: KServeNames
    body_reader: BodyReader
    responses: Responses
    """What answers requests for responses, which may be stored."""
    health: Callable[[], HealthReport]
    """Returns the health of the server."""

    async def read(self, request: AnyRequest, type_: type[Decoded]) -> Decoded:
        """Return the decoded body; before it is read, `DIALECT_PATHS` must allow the request."""
        body = await self.read_bytes(request)
        return await off_loop(len(body), decode, body, type_)

    async def read_bytes(self, request: AnyRequest) -> bytes:
        """Return the body, which is JSON within the limits; raises as `read` does."""
        async with before_body(request):
            require_no_form(request.headers.get("content-type", ""))
            self.manager.authorizer.require_key()
            if operations := DIALECT_PATHS[request.scope["path"].removeprefix("/openai").rstrip("/") or "/"]:
                self.manager.authorizer.require_any(operations)
        body = without_byte_order_mark(await self.body_reader.body(request))
        await self.body_reader.require_shape(body)
        return body

    def find(self, request: AnyRequest, name: str | None) -> tuple[str, ModelStatus]:
        """Return the name that the request calls a model by, and the model.

        The name is the one in the body, in the header of KServe's gateway, or else the parameter `model` of the URL,
        for protocols whose servers have one model; without any of them, it is that of the only model.
        """
        name = self.kserve_names.requested_model(name or request.query_params.get("model"), request.headers)
        status = self.manager.find(name)
        return name or status.name, status

    async def answer(
        self,
        request: AnyRequest,
        name: str,
        operation: Operation,
        body: Json,
        type_: type[Decoded],
        translate: Callable[[Decoded], Any],  # Any: what msgspec writes
    ) -> Response[bytes]:
        """Return the model's response to an OpenAI request, which is of a type, translated."""

        def convert(content: bytes) -> bytes:
            return msgspec.json.encode(translate(decode_response(content, type_)))

        response = await cancel_on_disconnect(request, self._handle(request, name, operation, body))
        content = await response_body(response)
        translated = await off_loop(len(content), convert, content)
        return Response(translated, media_type="application/json", headers=model_headers(response))

    async def stream(
        self, request: AnyRequest, name: str, operation: Operation, body: Json
    ) -> tuple[AsyncGenerator[Any], Mapping[str, str]]:  # Any: JSON values
        """Return the JSON of each event of the model's stream, and its headers; closing it stops the model's work."""
        work = self._handle(request, name, operation, {**body, "stream": True}, is_streamed=True)
        response = await cancel_on_disconnect(request, work)
        return response_events(response), model_headers(response)

    async def _handle(
        self, request: AnyRequest, name: str, operation: Operation, body: Json, *, is_streamed: bool = False
    ) -> ModelResponse:
        def encode() -> ModelRequest:
            return openai_request(name, operation, body, dict(request.headers))

        inner = await off_loop(_size(request), encode)
        return await self.manager.handle(name, replace(inner, is_streamed=is_streamed))


def truncation(status: ModelStatus, side: str | None, *, is_explicit: bool) -> Json:
    """Return vLLM's fields that cut long texts on a side, `left` or `right`; None cuts nothing.

    Truncation that is only a protocol's default is not requested of other servers, which may not know the fields.
    """
    if side is None or not (is_explicit or isinstance(status.config, EncoderConfig)):
        return {}
    return {"truncate_prompt_tokens": -1, "truncation_side": side}


def _size(request: AnyRequest) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and "content-encoding" not in request.headers else _LARGE
