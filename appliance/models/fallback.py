"""Fallback of a request to another model of the file: why it is needed, and the request for the other model."""

from __future__ import annotations

from dataclasses import replace

from appliance.config.models import FallbackReason
from appliance.core.concurrency import off_loop
from appliance.core.errors import (
    CONTEXT_LENGTH_EXCEEDED,
    ApplianceError,
    EngineDeadError,
    RequestError,
    UnavailableError,
    UnreachableError,
)
from appliance.core.model import OPENAI_PATHS, ModelRequest, ModelResponse
from appliance.core.rewrite import RequestBody
from appliance.core.server_errors import ServerError, has_context_length_text
from appliance.limits.rate_limiter import KEY_LIMIT

# 529 is Anthropic's (https://docs.anthropic.com/en/api/errors).
_REASONS: dict[int, FallbackReason] = {429: "overloaded", 529: "overloaded", 503: "unavailable"}

_CONTEXT_LENGTH_STATUSES = frozenset({400, 413, 422})


def reason_of(outcome: ApplianceError | ModelResponse) -> FallbackReason | None:
    """Return why another model may answer instead; None if the request is at fault, or may have begun elsewhere."""
    if isinstance(outcome, ModelResponse):
        if outcome.status in _CONTEXT_LENGTH_STATUSES and isinstance(outcome.body, bytes):
            return "context_length" if ServerError.of(outcome.body).is_context_length else None
        return _REASONS.get(outcome.status)
    if isinstance(outcome, EngineDeadError | UnreachableError):
        return "unavailable"
    if not isinstance(outcome, RequestError) or outcome.code == KEY_LIMIT:
        return None
    if isinstance(outcome, UnavailableError) and outcome.code == "engine_busy":
        return "overloaded"
    if outcome.code == CONTEXT_LENGTH_EXCEEDED or (
        outcome.status in _CONTEXT_LENGTH_STATUSES and has_context_length_text(str(outcome))
    ):
        return "context_length"
    return _REASONS.get(outcome.status)


async def request_for(request: ModelRequest, name: str, requested: str) -> ModelRequest:
    """Return the client's request with another name of the model; its response has the name that was `requested`."""
    body = request.body
    if request.operation in OPENAI_PATHS:
        content_type = request.headers.get("content-type", "application/json")
        body = await off_loop(len(body), lambda: RequestBody.of(request.body, content_type).with_model(name))
    return replace(request, body=body, model=request.model or requested)
