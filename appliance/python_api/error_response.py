"""OpenAI's error as an object that a model written in Python may return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

# https://platform.openai.com/docs/guides/error-codes, and vLLM's names for the same.
_STATUSES: Mapping[str, int] = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "rate_limit_error": 429,
    "server_error": 500,
    "InternalServerError": 500,
    "NotImplementedError": 501,
    "service_unavailable_error": 503,
    "ServiceUnavailableError": 503,
}


class ErrorInfo(BaseModel):
    """What went wrong: `code` is a word for programs, or the HTTP status."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: int | str | None = None


class ErrorResponse(BaseModel):
    """A refusal: ``ErrorResponse(message="no", code=404)``, or with all of it under `error`."""

    error: ErrorInfo

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, given: Any) -> Any:  # Any: whatever the user gave
        return given if not isinstance(given, Mapping) or "error" in given else {"error": given}

    # The fields may be given as they are, so the signature is written by hand.
    def __init__(self, **fields: Any) -> None:  # Any: checked by pydantic
        super().__init__(**fields)

    @property
    def status(self) -> int:
        """The HTTP status: `code` where it is one, else what `type` stands for, else 400."""
        code = str(self.error.code)
        is_status = code.isdecimal() and 400 <= int(code) <= 599
        return int(code) if is_status else _STATUSES.get(self.error.type, 400)
