"""
What huggingface_hub raises, in our words; used in the child only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from appliance.errors import (
    AccessDeniedError,
    ArtifactNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from appliance.storage.faults import REMEDIES
from appliance.storage.uri import redact

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_LATER = "try again, or check HF_ENDPOINT, proxy and certificates"
_LONGEST = 300


def is_broken_connection(error: Exception) -> bool:
    """
    Whether nothing was answered, or only half of it; what the hub refuses is an answer.
    """
    from huggingface_hub import errors as hub

    root = _root(error)
    return isinstance(root, _http_error()) and not isinstance(root, hub.HfHubHTTPError)


def translate(what: str, name: str, error: Exception) -> StorageError:
    """
    The error of ours for one of huggingface_hub's.
    """
    from huggingface_hub import errors as hub

    root = _root(error)
    if isinstance(root, hub.HfHubHTTPError):
        return _refusal(what, name, root)
    if isinstance(root, hub.OfflineModeIsEnabled):
        return StorageError(f"{what}: TRANSFORMERS_OFFLINE is set, so nothing may be fetched; unset it")
    if isinstance(root, OSError) and root.errno in REMEDIES:
        return StorageError(f"{root.filename or what}: {root.strerror}; {REMEDIES[root.errno]}")
    # Besides broken connections: sizes that do not match, answers without what a hub says, answers that are no JSON.
    if isinstance(root, (_http_error(), OSError, ValueError)):
        return StorageUnavailableError(f"{what}: {_words(root)}; {_LATER}")
    return StorageError(f"{what}: {_words(root)}")


def _http_error() -> type[Exception]:
    """
    The root of all errors of the HTTP library that this huggingface_hub uses: versions have different ones.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # imported there, not exported

    return cast("type[Exception]", HTTPError)


def _root(error: BaseException) -> BaseException:
    """
    The error itself: where huggingface_hub falls back on files of an earlier run, it raises that there are none.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refusal(what: str, name: str, error: HfHubHTTPError) -> StorageError:
    """
    The error of ours for an answer; the first row that fits wins, because the classes overlap.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    status = error.response.status_code
    page = redact(f"{constants.ENDPOINT}/{name}")
    rows: tuple[tuple[bool, type[StorageError], str], ...] = (
        (
            isinstance(error, hub.GatedRepoError),
            AccessDeniedError,
            f"the model is gated; ask for access at {page}, and set HF_TOKEN to a token that was granted it",
        ),
        (
            isinstance(error, hub.RepositoryNotFoundError),
            ArtifactNotFoundError,
            f"no model at {page}, or a private one; check the name, or set HF_TOKEN to a token that may read it",
        ),
        (
            isinstance(error, hub.RevisionNotFoundError),
            ArtifactNotFoundError,
            "the model has no such commit; check it, or name a branch",
        ),
        (isinstance(error, hub.DisabledRepoError), AccessDeniedError, f"the hub has disabled the model; see {page}"),
        (
            status in (401, 403),
            AccessDeniedError,
            f"the hub answers {status}: {_words(error)}; set HF_TOKEN to a valid token that may read the model",
        ),
        (status == 404, ArtifactNotFoundError, f"not found at {page}; check the name and HF_ENDPOINT"),
        (status == 429 or status >= 500, StorageUnavailableError, f"the hub answers {status}; {_LATER}"),
    )
    kind, text = next(
        ((kind, text) for fits, kind, text in rows if fits),
        (StorageError, f"the hub answers {status}: {_words(error)}"),
    )
    return kind(f"{what}: {text}")


def _words(error: BaseException) -> str:
    """
    What an error says, on one line, without secrets.
    """
    said = getattr(error, "server_message", None) or str(error)
    return redact(" ".join(said.split()))[:_LONGEST] or type(error).__name__
