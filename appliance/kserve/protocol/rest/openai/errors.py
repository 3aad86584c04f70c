"""KServe's module of this name."""

from __future__ import annotations

from http import HTTPStatus

from appliance.core.errors import RequestError
from appliance.python_api.types import ErrorResponse

__all__ = ["OpenAIError", "create_error_response"]


class OpenAIError(RequestError):
    """An error for OpenAI's clients: a text is 500, an `ErrorResponse` has its own status."""

    def __init__(self, response: str | ErrorResponse) -> None:
        self.response = response
        if isinstance(response, str):
            super().__init__(response, status=500)
        else:
            error = response.error
            code = None if error.code is None or str(error.code).isdecimal() else str(error.code)
            super().__init__(error.message, param=error.param or None, code=code, status=response.status)


def create_error_response(
    message: str,
    err_type: str = "BadRequestError",
    param: str = "",
    status_code: int = HTTPStatus.BAD_REQUEST,
) -> ErrorResponse:
    """Return an error with a status."""
    return ErrorResponse(message=message, type=err_type, param=param, code=str(int(status_code)))
