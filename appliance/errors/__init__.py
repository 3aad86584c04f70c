"""
Everything that can go wrong, as one tree.

::

    ApplianceError                     500  exit 1
    ├── ConfigError                    500  exit 2   the file is wrong; carries every problem found
    ├── MissingExtraError              500  exit 2   an optional dependency is not installed
    ├── StorageError                   500  exit 3   the bytes cannot be brought
    │   ├── ArtifactNotFoundError           exit 10  nothing lies at the URI
    │   ├── AccessDeniedError               exit 11  the store wants other credentials
    │   │   └── GatedError                  exit 12  the credentials are good, and the owner's consent is missing
    │   ├── NoSpaceError                    exit 13  the disk is full, or will be
    │   ├── StorageUnavailableError         exit 14  the store does not answer; may pass
    │   ├── StorageTimeoutError             exit 15  it took longer than it may
    │   └── ArtifactCorruptError            exit 16  bytes arrived, but not the right ones
    │       └── ArtifactChangedError        exit 17  the store's bytes are others than they were
    ├── LoadError                      503  exit 4   the engine cannot serve this model
    ├── EngineDeadError                503  exit 4   the engine ended while it served
    └── CallError                      400           one call is refused; the caller is at fault
        ├── UnauthenticatedError       401           no key, or one that nobody has
        ├── ForbiddenError             403           the key is good, and not for this
        ├── UnsupportedOperationError  400           the model cannot do this
        ├── UnknownModelError          404           no model has this name
        ├── UnavailableError           503           not now: loading, draining, failed, or no upstream left
        └── GatewayError               502           the upstream gave no answer, or half of one
            └── GatewayTimeoutError    504           the upstream took too long

``status`` is the HTTP status a protocol answers with, ``exit_code`` what the command line ends with.
Only protocols and the command line render an error; everyone else raises.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors.problem import Problem as Problem


class ApplianceError(Exception):
    """
    Root of the tree: its text names the thing, the fault and the remedy, and is safe to show.
    """

    status: int = 500
    exit_code: int = 1


class ConfigError(ApplianceError):
    """
    The config cannot be used; `problems` holds every fault found, in the order of the file.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class MissingExtraError(ApplianceError):
    """
    An optional dependency is not installed.
    """

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'appliance[{extra}]'"
        )


class StorageError(ApplianceError):
    """
    The bytes of a model cannot be brought.
    """

    exit_code = 3


class ArtifactNotFoundError(StorageError):
    """
    Nothing lies at the URI.
    """

    exit_code = 10


class AccessDeniedError(StorageError):
    """
    The store wants other credentials than the ones it was given.
    """

    exit_code = 11


class GatedError(AccessDeniedError):
    """
    The credentials are good, and the owner of the model has to consent first.
    """

    exit_code = 12


class NoSpaceError(StorageError):
    """
    The bytes do not fit on the disk.
    """

    exit_code = 13


class StorageUnavailableError(StorageError):
    """
    The store does not answer; a later try may succeed.

    `retry_after` is the wait in seconds that the store asks for, or None.
    """

    exit_code = 14

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageTimeoutError(StorageError):
    """
    Bringing the bytes took longer than it may.
    """

    exit_code = 15


class ArtifactCorruptError(StorageError):
    """
    Bytes arrived, but not the ones that were promised.
    """

    exit_code = 16


class ArtifactChangedError(ArtifactCorruptError):
    """
    The store's bytes are others than they were: changed while they were fetched, or since they were pinned.
    """

    exit_code = 17


class LoadError(ApplianceError):
    """
    The engine cannot serve this model as the config asks.
    """

    status = 503
    exit_code = 4


class EngineDeadError(ApplianceError):
    """
    The engine ended while it served.
    """

    status = 503
    exit_code = 4


class CallError(ApplianceError):
    """
    One call is refused.

    `param` is the field of the request at fault, or None; `code` a word for programs, or None;
    `status` is given only where the engine chose it, and None is the class's own.
    """

    status = 400
    code: str | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.code
        self.status = status or self.status


class UnauthenticatedError(CallError):
    """
    The server has keys, and the caller came with none of them.
    """

    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("This server needs an API key; send it as: Authorization: Bearer KEY, or as x-api-key")


class ForbiddenError(CallError):
    """
    The caller's key is good, and may not do this.
    """

    status = 403
    code = "not_allowed"


class UnsupportedOperationError(CallError):
    """
    The model exists and cannot do what was asked.
    """


class UnknownModelError(CallError):
    """
    No model of the config has this name.
    """

    status = 404


class UnavailableError(CallError):
    """
    The model cannot answer now; `retry_after` is the wait in seconds worth trying, or None for never.
    """

    status = 503
    code = "model_not_ready"

    def __init__(self, message: str, *, retry_after: int | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class GatewayError(CallError):
    """
    The upstream gave no answer, or broke off in the middle of one; nobody here is at fault.
    """

    status = 502
    code = "upstream_failed"


class GatewayTimeoutError(GatewayError):
    """
    The upstream took longer than its timeouts allow.
    """

    status = 504
    code = "upstream_timeout"
