"""Storage errors for what filesystems and their clients raise: by HTTP status, and then by type."""

from __future__ import annotations

import ftplib
import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.core.errors import (
    AccessDeniedError,
    ApplianceError,
    ArtifactChangedError,
    ArtifactNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from appliance.core.uri import redact

_MAX_MESSAGE = 300
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

_EXHAUSTED = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})(?!\d)")

_UNVERIFIED = "certificate verify failed"

# Temporary: timeout, too early, too many requests, and every 5xx but "not implemented" and "version not supported".
_TEMPORARY = frozenset({408, 425, 429})
_PERMANENT = frozenset({501, 505})

# Exceptions of vendors are known by their names, because their packages may not be installed.
_CERTIFICATE_ERRORS = frozenset({"SSLCertVerificationError", "CertificateError"})
_CREDENTIAL_ERRORS = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
        *("TokenRetrievalError", "SSOError", "DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"),
        *("CredentialUnavailableError", "AuthenticationException"),
    }
)

_MISSING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

# Raised for arguments, and not for answers; another attempt would end in the same way.
_FINAL_ERRORS = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class FailedResponse:
    """A response with a status of failure; `message` is the store's own code or reason, or ""."""

    status: int
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class ErrorContext(Protocol):
    """The store that a request belongs to."""

    @property
    def credential(self) -> str:
        """Which credential is used, or `anonymous`."""

    @property
    def remedy(self) -> str:
        """What to do if the credential is not sufficient."""

    def own_error(self, resource: str, error: BaseException, response: FailedResponse | None) -> StorageError | None:
        """Return the error for a cause that means something else to this store than its status or type; else None."""


def to_storage_error(resource: str, error: BaseException, store: ErrorContext) -> ApplianceError:
    """Return the error for what a client raised while it requested `resource`."""
    causes = [(cause, _response_of(cause)) for cause in _causes(error)]
    for cause, response in causes:
        if isinstance(cause, ApplianceError):
            return cause
        if found := store.own_error(resource, cause, response):
            return found
    for _, response in causes:
        if response:
            return status_error(resource, response, store)
    for cause, _ in causes:
        if isinstance(cause, PermissionError) or is_credential_error(cause):
            message = clean(str(cause)) or "access denied"
            return AccessDeniedError(f"{resource}: {message} (with {store.credential}); {store.remedy}")
        if isinstance(cause, _MISSING_ERRORS) or _ftp_code(cause) == "550":
            return _missing_error(resource, "", store)
    return _connection_error(resource, error, [cause for cause, _ in causes])


def is_credential_error(error: BaseException) -> bool:
    """Return whether a client has no usable credential, or the server rejected it without a status."""
    return bool(_names(error) & _CREDENTIAL_ERRORS) or _ftp_code(error) in ("530", "532")


def status_error(resource: str, response: FailedResponse, store: ErrorContext) -> StorageError:
    """Return the error for the HTTP status of a failed response."""
    status = response.status
    answer = f"the store responds {status}" + (f" ({clean(response.message)})" if response.message else "")
    if status in (401, 403):
        return AccessDeniedError(f"{resource}: {answer} to {store.credential}; {store.remedy}")
    if status in (404, 410):
        return _missing_error(resource, f", {answer}", store)
    if status in (412, 416):
        return changed_error(resource)
    if status in _TEMPORARY or (status >= 500 and status not in _PERMANENT):
        seconds = _retry_after(response.headers)
        when = "later" if seconds is None else f"in {seconds:g} seconds, as it asks"
        return StorageUnavailableError(f"{resource}: {answer}; try again {when}", retry_after=seconds)
    return StorageError(f"{resource}: {answer}; check the URI and the address of the store")


def changed_error(resource: str) -> ArtifactChangedError:
    """Return the error for a file that is not the listed one any more."""
    return ArtifactChangedError(f"{resource}: changed during the download; try again when nobody writes to it")


def check_content_range(resource: str, content_range: str | None, size: int, start: int, end: int) -> None:
    """Check that a response has the bytes from `start` up to `end` of a file of `size` bytes.

    Raises:
        ArtifactChangedError: the file has another size.
        StorageUnavailableError: the response has another range, or none.
    """
    found = _CONTENT_RANGE.fullmatch(content_range or "")
    if not found:
        raise StorageUnavailableError(
            f"{resource}: the store sends the whole file where a range was requested; "
            "look for a proxy on the way that removes the Range header"
        )
    if found[3] not in ("*", str(size)):
        raise changed_error(resource)
    if (int(found[1]), int(found[2]) + 1) != (start, end):
        raise StorageUnavailableError(f"{resource}: the store sends another range than requested; try again")


def total_size(content_range: str | None) -> int | None:
    """Return the size of the whole file from a Content-Range header, or None."""
    found = _CONTENT_RANGE.fullmatch(content_range or "")
    return int(found[3]) if found and found[3] != "*" else None


def clean(text: str) -> str:
    """Return a vendor's message on one line, shortened and without secrets."""
    return redact(" ".join(text.split()))[:_MAX_MESSAGE]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until a rate limit ends: of a Retry-After header that is no date, or of a RateLimit header.

    https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/; the hub sends `RateLimit: "api";r=0;t=60`.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    told = fields.get("retry-after", "")
    if told.isascii() and told.isdigit():
        return float(told)
    exhausted = _EXHAUSTED.search(fields.get("ratelimit", ""))
    return float(exhausted[1]) if exhausted else None


def _connection_error(resource: str, error: BaseException, causes: Sequence[BaseException]) -> StorageError:
    """Return the error for a connection that failed or broke."""
    if found := next((cause for cause in causes if _names(cause) & _CERTIFICATE_ERRORS), None):
        message = clean(str(found))
        return StorageError(
            f"{resource}: {message if _UNVERIFIED in message else f'{_UNVERIFIED}: {message}'}; set SSL_CERT_FILE, "
            "or ca_file in its storage.credentials, to a file with the certificates of this network"
        )
    if isinstance(error, _FINAL_ERRORS):
        # The text is not shown, because it may be a header with a secret.
        return StorageError(f"{resource}: not a valid address or header; correct it")
    is_timeout = any(isinstance(cause, TimeoutError) for cause in causes)
    problem = "timed out" if is_timeout else _problem_of(error)
    return StorageUnavailableError(f"{resource}: {problem}; try again, or check the network, its proxy and the address")


def _missing_error(resource: str, answer: str, store: ErrorContext) -> ArtifactNotFoundError:
    # Some stores hide private files from anonymous clients this way.
    private = f"; if it is private, {store.remedy}" if store.credential.startswith("anonymous") else ""
    return ArtifactNotFoundError(f"{resource}: not found{answer}; check the name and the path{private}")


def _response_of(error: BaseException) -> FailedResponse | None:
    """Return the response in an exception of a client, each of which has it elsewhere."""
    if "HttpProcessingError" in _names(error):
        # aiohttp's words for a response that breaks off, with the status of a bad request.
        return None
    response: Any = getattr(error, "response", None)  # Any: of any client
    if isinstance(response, Mapping):  # botocore
        metadata, code = response.get("ResponseMetadata", {}), str(response.get("Error", {}).get("Code", ""))
        # A response to HEAD has no body, so its code is its status.
        message = "" if code.isdigit() else code
        return FailedResponse(int(metadata.get("HTTPStatusCode", 0)), message, metadata.get("HTTPHeaders", {}))
    status = (
        getattr(error, "status", None)  # aiohttp
        or getattr(error, "status_code", None)  # Azure
        or getattr(response, "status_code", None)  # httpx and requests
        # gcsfs; the parser of aiohttp has a code as well, of what the server did wrong.
        or (getattr(error, "code", None) if "HttpError" in _names(error) else None)
    )
    if not isinstance(status, int) or not 400 <= status < 600:
        return None
    headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
    own_code = getattr(error, "error_code", None)  # Azure
    message = getattr(own_code, "value", own_code) or getattr(error, "message", None) or ""
    return FailedResponse(status, str(message), headers)


def _problem_of(error: BaseException) -> str:
    cause: Any = getattr(error, "os_error", None)  # Any: aiohttp's, whose text is asyncio's
    if not isinstance(cause, OSError) or isinstance(cause, ssl.SSLError):
        # Paramiko's has no number, and its text begins with `[Errno None]`.
        text = error.strerror if isinstance(error, OSError) and error.errno is None else None
        return clean(text or str(error)) or type(error).__name__
    reason = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror or str(cause)
    return f"cannot connect to {getattr(error, 'host', 'it')}:{getattr(error, 'port', '')}: {reason}"


def _ftp_code(error: BaseException) -> str:
    # RFC 959: a reply begins with its code.
    return str(error)[:3] if isinstance(error, ftplib.error_perm) else ""


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it: some clients pass it as an argument, others raise `from` it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        if (cause := waiting.pop()) is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        arguments = [value for value in cause.args if isinstance(value, BaseException)]
        waiting += [cause.__context__, cause.__cause__, *arguments]
