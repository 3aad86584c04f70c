"""What the answers of stores, and the lack of one, are in our words: all of them speak HTTP in the end."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import urllib3
from urllib3.exceptions import NewConnectionError
from urllib3.util.ssl_match_hostname import CertificateError

from appliance.config.storage import TransferConfig
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactChangedError,
    ArtifactNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from appliance.core.uri import redact

_LONGEST = 300
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

_CERTIFICATES = (ssl.SSLCertVerificationError, CertificateError)
_UNVERIFIED = "certificate verify failed"

# What passes: too slow, too early, too many; and everything that is the store's own fault but what it never learns.
_PASSING = frozenset({408, 425, 429})
_NEVER = frozenset({501, 505})


@dataclass(frozen=True, slots=True)
class AccessHint:
    """As whom we ask, and what to do where that is not enough."""

    credential: str
    remedy: str


def patience(transfer: TransferConfig) -> tuple[float, float]:
    """The seconds that a vendor's client may take to connect, and may be silent: the transfer, which knows what silence
    means, loses its own patience sooner.
    """
    return min(10.0, transfer.stall_seconds), 2 * transfer.stall_seconds


def refused(what: str, status: int, said: str, access: AccessHint, *, retry_after: float | None = None) -> StorageError:
    """The error for an HTTP status that is no success; `said` is what the store says about it, or ""."""
    answer = f"the store answers {status}" + (f" ({clean(said)})" if said else "")
    if status in (401, 403):
        return AccessDeniedError(f"{what}: {answer} to {access.credential}; {access.remedy}")
    if status in (404, 410):
        # Some stores say so to strangers, of what is there.
        private = f"; if it is private, {access.remedy}" if access.credential.startswith("anonymous") else ""
        return ArtifactNotFoundError(f"{what}: not there, {answer}; check the name and the path{private}")
    if status in (412, 416):
        return changed(what)
    if status in _PASSING or (status >= 500 and status not in _NEVER):
        return StorageUnavailableError(f"{what}: {answer}; try again later", retry_after=retry_after)
    return StorageError(f"{what}: {answer}; check the URI and the address of the store")


def changed(what: str) -> ArtifactChangedError:
    """The error for a file that is not the one that was listed."""
    return ArtifactChangedError(f"{what}: changed while it was fetched; try again when nobody writes to it")


def cut(what: str, missing: int) -> StorageUnavailableError:
    """The error for an answer that ended early, or went on too long."""
    words = f"ends {missing:,} bytes early" if missing > 0 else "is longer than what was asked for"
    return StorageUnavailableError(f"{what}: the answer {words}; try again, or check proxies on the way")


def check_part(what: str, content_range: str | None, size: int, start: int, end: int) -> None:
    """Return when an answer's Content-Range says that it has the bytes from `start` up to `end` of `size`.

    Raises:
        ArtifactChangedError: the file has another size by now.
        StorageUnavailableError: it says anything else, or nothing.
    """
    found = _CONTENT_RANGE.fullmatch(content_range or "")
    if not found:
        raise StorageUnavailableError(
            f"{what}: the store sends all of the file where a part was asked for; "
            "look for a proxy on the way that takes the Range header out"
        )
    if found[3] not in ("*", str(size)):
        raise changed(what)
    if (int(found[1]), int(found[2]) + 1) != (start, end):
        raise StorageUnavailableError(f"{what}: the store sends another part than was asked for; try again")


def total_size(content_range: str | None) -> int | None:
    """The size of the whole file, as a Content-Range says."""
    found = _CONTENT_RANGE.fullmatch(content_range or "")
    return int(found[3]) if found and found[3] != "*" else None


def unanswered(what: str, error: BaseException) -> StorageError:
    """The error for a connection that did not come about, or broke."""
    causes = tuple(_causes(error))
    if found := next((cause for cause in causes if isinstance(cause, _CERTIFICATES)), None):
        said = clean(str(found))
        return StorageError(
            f"{what}: {said if _UNVERIFIED in said else f'{_UNVERIFIED}: {said}'}; set SSL_CERT_FILE (AWS_CA_BUNDLE "
            "for s3://, REQUESTS_CA_BUNDLE for Azure) to a file with the certificates of this network"
        )
    if isinstance(error, ValueError):
        # Nor is it shown: it may be a header with a secret in it.
        return StorageError(f"{what}: not an address, or not a header, that can be sent; correct it")
    words = "no answer in time" if any(map(_is_late, causes)) else clean(str(error)) or type(error).__name__
    return StorageUnavailableError(f"{what}: {words}; try again, or check the network, its proxy and the address")


def is_framed(status: int, headers: Mapping[str, str]) -> bool:
    """
    Whether an answer says where it ends; one that does not may have been cut within its headers, which Python's parser
    takes for all of them.
    """
    if status in (204, 304) or "Content-Length" in headers or "Transfer-Encoding" in headers:
        return True
    return headers.get("Connection", "").lower() == "close"


def _is_late(error: BaseException) -> bool:
    # A connection that is refused counts as one that was not made in time, to urllib3.
    return isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError)) and not isinstance(
        error, NewConnectionError
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it: urllib3 names it, aiohttp wraps it, and others raise from it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        if (cause := waiting.pop()) is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        named = [getattr(cause, name, None) for name in ("reason", "original_error", "certificate_error")]
        inner = [each for each in (*named, *cause.args) if isinstance(each, BaseException)]
        waiting += [cause.__context__, cause.__cause__, *inner]


def clean(text: str) -> str:
    """What a vendor says, on one line, without secrets and not too much of it."""
    return redact(" ".join(text.split()))[:_LONGEST]


def retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header; a date is not waited for."""
    return float(value) if value and value.isascii() and value.isdigit() else None
