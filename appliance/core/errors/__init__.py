"""Everything that can go wrong, as one tree.

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
        ├── LimitedError               429           too many at once, or too much in a minute
        ├── SlowBodyError              408           the client took too long to send its request
        ├── DeadlineError              504           the answer takes longer than it may
        ├── UnavailableError           503           not now: loading, draining, failed, or no upstream left
        └── GatewayError               502           the upstream gave no answer, or half of one
            ├── GatewayTimeoutError    504           the upstream took too long
            └── UnreachableError       502           no connection to the upstream came about

``status`` is the HTTP status a protocol answers with, ``exit_code`` what the command line ends with.
Only protocols and the command line render an error; everyone else raises.
"""

from appliance.core.errors.base import (
    ApplianceError,
    ConfigError,
    EngineDeadError,
    LoadError,
    MissingExtraError,
    Problem,
)
from appliance.core.errors.request import (
    ForbiddenError,
    GatewayError,
    GatewayTimeoutError,
    RateLimitedError,
    RequestError,
    RequestTimeoutError,
    SlowRequestBodyError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnreachableError,
    UnsupportedOperationError,
)
from appliance.core.errors.storage import (
    AccessDeniedError,
    ArtifactChangedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    GatedError,
    NoSpaceError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)

__all__ = [
    "AccessDeniedError",
    "ApplianceError",
    "ArtifactChangedError",
    "ArtifactCorruptError",
    "ArtifactNotFoundError",
    "ConfigError",
    "EngineDeadError",
    "ForbiddenError",
    "GatedError",
    "GatewayError",
    "GatewayTimeoutError",
    "LoadError",
    "MissingExtraError",
    "NoSpaceError",
    "Problem",
    "RateLimitedError",
    "RequestError",
    "RequestTimeoutError",
    "SlowRequestBodyError",
    "StorageError",
    "StorageTimeoutError",
    "StorageUnavailableError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownModelError",
    "UnreachableError",
    "UnsupportedOperationError",
]
