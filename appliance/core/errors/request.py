"""Why a call is refused, or gets no answer."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.core.errors.base import ApplianceError


class RequestError(ApplianceError):
    """One call is refused.

    `param` is the field of the request at fault, or None; `code` a word for programs, or None;
    `status` is given only where the engine chose it, and None is the class's own. `retry_after` is the wait in seconds
    worth trying, or None for never; `headers` go with the answer.
    """

    status = 400
    code: str | None = None
    retry_after: int | None = None
    headers: Mapping[str, str] = {}

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.code
        self.status = status or self.status


class UnauthenticatedError(RequestError):
    """The server has keys, and the caller came with none of them."""

    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("This server needs an API key; send it as: Authorization: Bearer KEY, or as x-api-key")


class ForbiddenError(RequestError):
    """The caller's key is good, and may not do this."""

    status = 403
    code = "not_allowed"


class UnsupportedOperationError(RequestError):
    """The model exists and cannot do what was asked."""


class UnknownModelError(RequestError):
    """No model of the config has this name."""

    status = 404


class RateLimitedError(RequestError):
    """The request is one too many; after `retry_after` seconds there may be room for it."""

    status = 429

    def __init__(self, message: str, *, retry_after: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after
        self.headers = headers or {}


class SlowRequestBodyError(RequestError):
    """The client took too long to send its request.

    Source of the status: https://www.rfc-editor.org/rfc/rfc9110#section-15.5.9.
    """

    status = 408
    code = "request_timeout"


class RequestTimeoutError(RequestError):
    """The answer takes longer than it may.

    The status is what a gateway answers in the place of a server that is late
    (https://www.rfc-editor.org/rfc/rfc9110#section-15.6.5), and gRPC's DEADLINE_EXCEEDED in HTTP; 408 would blame the
    client's sending.
    """

    status = 504
    code = "deadline_exceeded"


class UnavailableError(RequestError):
    """The model cannot answer now."""

    status = 503
    code = "model_not_ready"

    def __init__(self, message: str, *, retry_after: int | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class GatewayError(RequestError):
    """The upstream gave no answer, or broke off in the middle of one; nobody here is at fault.

    `detail` is the same for operators, in logs and probes: with addresses, and what the system said.
    """

    status = 502
    code = "upstream_failed"

    def __init__(self, message: str, *, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail or message


class UnreachableError(GatewayError):
    """No connection to the upstream came about, so it has seen nothing of the request."""


class GatewayTimeoutError(GatewayError):
    """The upstream took longer than its timeouts allow."""

    status = 504
    code = "upstream_timeout"
