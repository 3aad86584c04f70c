"""Why a request falls back to another model, and what the other model gets."""

from __future__ import annotations

import json

import pytest

from appliance.core.errors import (
    ApplianceError,
    EngineDeadError,
    GatewayError,
    GatewayTimeoutError,
    RateLimitedError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
    UnreachableError,
)
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.models.fallback import reason_of, request_for

ERRORS: list[tuple[ApplianceError, str | None]] = [
    (RateLimitedError("full", code="overloaded"), "overloaded"),
    (RateLimitedError("the key has used up its requests", code="rate_limit_exceeded"), None),
    (UnavailableError("busy", code="engine_busy"), "overloaded"),
    (RequestError("slow down", status=429), "overloaded"),
    (UnavailableError("loading"), "unavailable"),
    (EngineDeadError("died"), "unavailable"),
    (UnreachableError("no connection"), "unavailable"),
    (GatewayError("reset after the request was sent"), None),
    (GatewayTimeoutError("late"), None),
    (RequestTimeoutError("late"), None),
    (RequestError("too long", code="context_length_exceeded"), "context_length"),
    (RequestError("This model's maximum context length is 2048 tokens."), "context_length"),
    (RequestError("temperature must be a number"), None),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS, ids=lambda value: str(value)[:40])
def test_errors_have_a_reason_only_where_nothing_has_begun(error: ApplianceError, reason: str | None) -> None:
    """A limit of the key is no reason, nor is an answer that may be under way elsewhere."""
    assert reason_of(error) == reason


# Sources: https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors, and the
# sources of vLLM, llama.cpp and text-generation-inference.
BODIES: list[tuple[int, object, str | None]] = [
    (400, {"error": {"code": "context_length_exceeded", "message": "Your input exceeds the window"}}, "context_length"),
    (400, {"error": {"message": "This model's maximum context length is 4096 tokens.", "code": 400}}, "context_length"),
    (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens."}, "context_length"),
    (
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "prompt is too long: 210 tokens > 200 maximum"},
        },
        "context_length",
    ),
    (413, {"type": "error", "error": {"type": "request_too_large", "message": "32 MB"}}, "context_length"),
    (400, {"error": {"type": "exceed_context_size_error", "code": 400}}, "context_length"),
    (422, {"error": "`inputs` must have less than 1024 tokens. Given: 2000"}, "context_length"),
    (400, {"error": {"message": "temperature must be a number"}}, None),
    (400, "no JSON object", None),
    (429, {"error": {"code": "insufficient_quota"}}, "overloaded"),
    (529, {"type": "error"}, "overloaded"),
    (503, {}, "unavailable"),
    (500, {}, None),
    (502, {}, None),
    (404, {}, None),
    (200, {"error": {"code": "context_length_exceeded"}}, None),
]


@pytest.mark.parametrize(("status", "body", "reason"), BODIES)
def test_errors_of_upstreams_have_a_reason(status: int, body: object, reason: str | None) -> None:
    """By their status, or by the words of each server for a request that is too long."""
    assert reason_of(ModelResponse(json.dumps(body).encode(), status)) == reason


async def test_the_other_model_gets_the_original_request_under_its_own_name() -> None:
    """The response has the name that the client used; tensors have no name in them."""
    body = b'{"model": "small", "messages": [], "x": 1.0}'
    chat = await request_for(ModelRequest(Operation.CHAT_COMPLETION, body), "large", "small")
    tensors = await request_for(ModelRequest(Operation.INFERENCE, b"\x00"), "large", "small")

    assert (chat.body, chat.model) == (body.replace(b"small", b"large"), "small")
    assert (tensors.body, tensors.model) == (b"\x00", "small")
