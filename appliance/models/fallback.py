"""Fallback of a request to another model of the file: why it is needed, and the request for the other model."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec

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
from appliance.limits.rate_limiter import KEY_LIMIT

# 529 is Anthropic's (https://docs.anthropic.com/en/api/errors).
_REASONS: dict[int, FallbackReason] = {429: "overloaded", 529: "overloaded", 503: "unavailable"}

_CONTEXT_LENGTH_STATUSES = frozenset({400, 413, 422})

# OpenAI's, llama.cpp's and Anthropic's words for a request that is too long.
_CONTEXT_LENGTH_CODES = frozenset({CONTEXT_LENGTH_EXCEEDED, "exceed_context_size_error", "request_too_large"})

# Servers without such a word: vLLM, Anthropic, Gemini, TGI, and Bedrock behind a gateway.
_CONTEXT_LENGTH_TEXT = re.compile(
    r"maximum context length|max_\w*tokens=\d+ cannot be greater than max_model_len|prompt is too long"
    r"|input token count .{0,40}exceeds|`inputs` (tokens|must have less)|input is too long",
    re.IGNORECASE,
)


class _Error(msgspec.Struct):
    code: Any = None  # Any: text, a number, or null
    type: Any = None  # Any: likewise
    message: Any = None  # Any: likewise


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None
    message: Any = None  # Any: older vLLM has the fields of the error at the top


def reason_of(outcome: ApplianceError | ModelResponse) -> FallbackReason | None:
    """Return why another model may answer instead; None if the request is at fault, or may have begun elsewhere."""
    if isinstance(outcome, ModelResponse):
        if outcome.status in _CONTEXT_LENGTH_STATUSES and isinstance(outcome.body, bytes):
            return "context_length" if _is_context_length(outcome.body) else None
        return _REASONS.get(outcome.status)
    if isinstance(outcome, EngineDeadError | UnreachableError):
        return "unavailable"
    if not isinstance(outcome, RequestError) or outcome.code == KEY_LIMIT:
        return None
    if isinstance(outcome, UnavailableError) and outcome.code == "engine_busy":
        return "overloaded"
    if outcome.code == CONTEXT_LENGTH_EXCEEDED or (
        outcome.status in _CONTEXT_LENGTH_STATUSES and _CONTEXT_LENGTH_TEXT.search(str(outcome))
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


def _is_context_length(body: bytes) -> bool:
    try:
        decoded = msgspec.json.decode(body, type=_ErrorBody)
    except (ValueError, RecursionError):
        return False
    error = decoded.error if isinstance(decoded.error, _Error) else _Error(message=decoded.error or decoded.message)
    has_code = not _CONTEXT_LENGTH_CODES.isdisjoint(each for each in (error.code, error.type) if isinstance(each, str))
    return has_code or _CONTEXT_LENGTH_TEXT.search(str(error.message)) is not None
