"""Bodies of errors of other servers: which field has what, and whether the request was too long."""

from __future__ import annotations

import re
from typing import Any, Self

import msgspec

from appliance.core.errors import CONTEXT_LENGTH_EXCEEDED

# OpenAI's, llama.cpp's and Anthropic's words for a request that is too long.
_CONTEXT_LENGTH_CODES = frozenset({CONTEXT_LENGTH_EXCEEDED, "exceed_context_size_error", "request_too_large"})

# Servers without such a word: vLLM, Anthropic, Gemini, TGI, and Bedrock behind a gateway.
_CONTEXT_LENGTH_TEXT = re.compile(
    r"maximum context length|max_\w*tokens=\d+ cannot be greater than max_model_len|prompt is too long"
    r"|input token count .{0,40}exceeds|`inputs` (tokens|must have less)|input is too long",
    re.IGNORECASE,
)


class ServerError(msgspec.Struct):
    """The fields of OpenAI's errors, which most servers have; each is None if there is none, or of another type."""

    message: Any = None  # Any: JSON, here and below
    type: Any = None
    param: Any = None
    code: Any = None

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Return the error in a body, which has none if it is no JSON."""
        try:
            return cls.of_json(msgspec.json.decode(body))
        except (ValueError, RecursionError):
            return cls()

    @classmethod
    def of_json(cls, decoded: Any) -> Self:
        """Return the error in JSON: an object or a text under `error`, or its fields at the top, as in older vLLM."""
        outer = decoded if isinstance(decoded, dict) else {}
        inner = outer.get("error", outer)
        if not isinstance(inner, dict):
            inner = {"message": inner}
        message = inner.get("message") or inner.get("detail")
        text = message if isinstance(message, str) else None
        return cls(text, inner.get("type"), inner.get("param"), inner.get("code"))

    @property
    def is_context_length(self) -> bool:
        """Whether the request is longer than the model's context."""
        has_code = any(isinstance(each, str) and each in _CONTEXT_LENGTH_CODES for each in (self.code, self.type))
        return has_code or has_context_length_text(self.message or "")


def has_context_length_text(message: str) -> bool:
    """Return whether the message of an error says that the request is longer than the model's context."""
    return _CONTEXT_LENGTH_TEXT.search(message) is not None
