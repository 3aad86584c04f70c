"""All errors, as one tree with the meaning of each.

::

    ApplianceError                     500  exit 1
    ├── ConfigError                    500  exit 2   the config is invalid; lists every problem
    ├── MissingPackageError            500  exit 2   a package is not installed
    │   └── MissingExtraError                        an optional dependency, which an extra installs
    ├── StorageError                   500  exit 3   the model's files cannot be downloaded or verified
    │   ├── ArtifactNotFoundError           exit 10  nothing exists at the URI
    │   ├── AccessDeniedError               exit 11  the store rejects the credentials
    │   │   └── GatedError                  exit 12  the credentials are valid, but the owner's consent is missing
    │   ├── NoSpaceError                    exit 13  the files do not fit on the disk
    │   ├── StorageUnavailableError         exit 14  the store does not answer; a retry may succeed
    │   ├── StorageTimeoutError             exit 15  the download exceeded its time limit
    │   └── ArtifactCorruptError            exit 16  the content does not match its digest or size
    │       └── ArtifactChangedError        exit 17  the content in the store changed
    ├── LoadError                      503  exit 4   the engine cannot serve this model
    ├── EngineDeadError                503  exit 4   the engine died while serving
    └── RequestError                400           one request is rejected or fails
        ├── UnauthenticatedError       401           the API key is missing or unknown
        ├── ForbiddenError             403           the API key is valid, but not for this
        ├── UnsupportedOperationError  400           the model does not support the operation
        ├── UnknownModelError          404           no model has this name
        ├── RateLimitedError           429           too many concurrent requests, or a rate limit is exceeded
        ├── SlowRequestBodyError       408           the client sent its body too slowly
        ├── RequestTimeoutError        504           the response exceeded its time limit
        ├── UnavailableError           503           not available now: loading, draining, failed, or no upstream
        └── GatewayError               502           the upstream gave no response, or an incomplete one
            ├── GatewayTimeoutError    504           the upstream took too long
            └── UnreachableError       502           no connection to the upstream

``status`` is the HTTP status of the response, ``exit_code`` the exit code of the command line.
Only the protocols and the command line render errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.core.distribution import install_command

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
"""OpenAI's code of a request that is longer than the model's context."""


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def anthropic_message(message: str, code: object, param: object) -> str:
    """Return an error's message in Anthropic's words, by which agents know that they must shorten the history."""
    is_prompt = code == CONTEXT_LENGTH_EXCEEDED and not str(param).startswith("max_")
    return f"prompt is too long: {message}" if is_prompt else message


def anthropic_error_type(status: int) -> str:
    """Return Anthropic's type of an error with a status; see https://docs.anthropic.com/en/api/errors."""
    return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


class ApplianceError(Exception):
    """Root of the tree; the message names the thing, the fault and the remedy, and is safe to show to clients."""

    status: int = 500
    exit_code: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a config.

    `line` and `column` count from 1 and are None if the value does not come from the file; `source` then names
    its origin, e.g. ``environment APPLIANCE__SERVER__PORT``. `snippet` is the line with a caret below it, or "".
    `is_unresolved` says that it is a reference to a variable or a file that cannot be read.
    """

    source: str
    line: int | None
    column: int | None
    path: str
    message: str
    snippet: str = ""
    is_unresolved: bool = False

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        head = ": ".join(part for part in (place, self.path, self.message) if part)
        return f"{head}\n{self.snippet}" if self.snippet else head


class ConfigError(ApplianceError):
    """The config is invalid; `problems` lists every problem in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class MissingPackageError(ApplianceError):
    """A package is not installed."""

    exit_code = 2


class MissingExtraError(MissingPackageError):
    """An optional dependency is not installed, and an extra installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: {install_command(extra)}"
        )


class LoadError(ApplianceError):
    """The engine cannot serve this model as the config asks."""

    status = 503
    exit_code = 4


class EngineDeadError(ApplianceError):
    """The engine died while serving."""

    status = 503
    exit_code = 4


class StorageError(ApplianceError):
    """The files of a model cannot be downloaded or verified."""

    exit_code = 3


class ArtifactNotFoundError(StorageError):
    """Nothing exists at the URI."""

    exit_code = 10


class AccessDeniedError(StorageError):
    """The store rejects the credentials."""

    exit_code = 11


class GatedError(AccessDeniedError):
    """The credentials are valid, but the owner of the model has not granted access."""

    exit_code = 12


class NoSpaceError(StorageError):
    """The files do not fit on the disk."""

    exit_code = 13


class StorageUnavailableError(StorageError):
    """`retry_after` is the delay in seconds that the store requests, or None."""

    exit_code = 14

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageTimeoutError(StorageError):
    """The download exceeded its time limit."""

    exit_code = 15


class ArtifactCorruptError(StorageError):
    """The downloaded content does not match its digest or size."""

    exit_code = 16


class ArtifactChangedError(ArtifactCorruptError):
    """The content in the store changed during the download, or since it was pinned."""

    exit_code = 17


class RequestError(ApplianceError):
    """One request is rejected or fails.

    `param` is the request field at fault, or None; `code` a machine-readable word, or None; `status` overrides the
    status of the class, for errors of an engine. `retry_after` is the delay in seconds after which a retry may
    succeed, or None; `headers` are added to the response.
    """

    status = 400
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.code
        self.status = status or self.status
        self.retry_after = retry_after
        self.headers = headers or {}


class UnauthenticatedError(RequestError):
    """The server requires an API key, and the request has none, or one that is unknown."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, *, has_key: bool = False) -> None:
        fault = "This server does not know the API key of the request" if has_key else "This server needs an API key"
        super().__init__(f"{fault}; send it as: Authorization: Bearer KEY, or as x-api-key")


class ForbiddenError(RequestError):
    """The API key is valid, but not allowed to do this."""

    status = 403
    code = "not_allowed"


class UnsupportedOperationError(RequestError):
    """The model does not support the operation."""


class UnknownModelError(RequestError):
    """No model has this name."""

    status = 404


class RateLimitedError(RequestError):
    """A limit on requests or tokens is exceeded; a retry may succeed after `retry_after` seconds."""

    status = 429


class SlowRequestBodyError(RequestError):
    """Source of the status: https://www.rfc-editor.org/rfc/rfc9110#section-15.5.9."""

    status = 408
    code = "request_timeout"


class RequestTimeoutError(RequestError):
    """The response exceeded its time limit."""

    # A gateway whose upstream is late (https://www.rfc-editor.org/rfc/rfc9110#section-15.6.5), and what gRPC's
    # DEADLINE_EXCEEDED maps to; 408 would blame the client's sending.
    status = 504
    code = "deadline_exceeded"


class UnavailableError(RequestError):
    """The model is not available now."""

    status = 503
    code = "model_not_ready"


class GatewayError(RequestError):
    """`detail` is the message for logs and probes, with addresses and the error of the system."""

    status = 502
    code = "upstream_failed"

    def __init__(self, message: str, *, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail or message


class UnreachableError(GatewayError):
    """No connection to the upstream could be opened, so it has seen nothing of the request."""


class GatewayTimeoutError(GatewayError):
    """The upstream took longer than its timeouts allow."""

    status = 504
    code = "upstream_timeout"
