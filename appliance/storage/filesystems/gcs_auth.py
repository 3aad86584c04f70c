"""Tokens for Google Cloud Storage, from wherever google-auth finds them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from appliance.config.credentials import GcsCredentials, value_of
from appliance.core.errors import AccessDeniedError, MissingExtraError, StorageUnavailableError
from appliance.storage.filesystems import http_errors

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

REMEDY = "set GOOGLE_APPLICATION_CREDENTIALS or storage.credentials.gcs to who may read it"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)


class GcsToken:
    """The token of a block of credentials, new when the old one expires; none for who is anonymous."""

    def __init__(self, what: str, block: GcsCredentials) -> None:
        self.credential = "Google credentials"
        self._what = what
        self._block = block
        self._lock = asyncio.Lock()
        self._is_looked_up = False
        self._found: Credentials | None = None

    async def value(self) -> str | None:
        """The token to send now.

        Raises:
            AccessDeniedError: the credentials that are set up are none.
            StorageUnavailableError: Google gives no token now.
        """
        async with self._lock:
            if not self._is_looked_up:
                # Reads files, and may ask the metadata server of the machine.
                self._found = await asyncio.to_thread(self._look_up)
                self._is_looked_up = True
            if self._found and not self._found.valid:
                await asyncio.to_thread(self._refresh, self._found)
            return self._found.token if self._found else None

    def _look_up(self) -> Credentials | None:
        block = self._block
        is_emulator = bool(block.endpoint_url or os.environ.get("STORAGE_EMULATOR_HOST"))
        if block.anonymous or (is_emulator and not (block.key or block.key_file)):
            self.credential = "anonymous"
            return None
        _require_google_auth()
        from google.auth.exceptions import GoogleAuthError

        try:
            return self._load()
        except (ValueError, OSError, GoogleAuthError) as error:
            raise AccessDeniedError(f"{self._what}: {http_errors.clean(str(error))}; {REMEDY}") from error

    def _load(self) -> Credentials | None:
        from google.auth.exceptions import DefaultCredentialsError

        try:
            self.credential, found = _find(self._block)
        except DefaultCredentialsError as error:
            block = self._block
            if block.key or block.key_file or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
                raise AccessDeniedError(f"{self._what}: {http_errors.clean(str(error))}; {REMEDY}") from error
            self.credential = "anonymous, as no Google credentials are set up"
            return None
        return found

    def _refresh(self, found: Credentials) -> None:
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.requests import Request

        try:
            found.refresh(Request())  # type: ignore[no-untyped-call] # google-auth has none here
        except TransportError as error:
            raise StorageUnavailableError(
                f"{self._what}: no token: {http_errors.clean(str(error))}; try again"
            ) from error
        except GoogleAuthError as error:
            kind = StorageUnavailableError if error.retryable else AccessDeniedError
            raise kind(f"{self._what}: {self.credential}: {http_errors.clean(str(error))}; {REMEDY}") from error


def _find(block: GcsCredentials) -> tuple[str, Credentials]:
    """Credentials, and in words which."""
    import google.auth

    if block.key:
        return "key of storage.credentials.gcs", _read(value_of(block.key) or "")
    if block.key_file:
        return "key_file of storage.credentials.gcs", _read(block.key_file.expanduser().read_text())
    found, _ = google.auth.default(scopes=_SCOPES)
    has_variable = "GOOGLE_APPLICATION_CREDENTIALS" in os.environ
    return "GOOGLE_APPLICATION_CREDENTIALS" if has_variable else "Google's default credentials", found


def _read(text: str) -> Credentials:
    """The credentials in the text of a JSON file.

    Only kinds that run no program, as some kinds do to get a token.
    """
    from google.auth import identity_pool
    from google.oauth2 import credentials, service_account

    # google-auth says nothing about the types of these.
    kinds: Mapping[str, Callable[..., Credentials]] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "external_account": identity_pool.Credentials.from_info,
        "authorized_user": credentials.Credentials.from_authorized_user_info,
    }
    info = json.loads(text)
    kind = str(info.get("type") if isinstance(info, dict) else None)
    if kind not in kinds:
        raise ValueError(f"is of type {kind!r}; known are {', '.join(kinds)}")
    return kinds[kind](info, scopes=_SCOPES)


def _require_google_auth() -> None:
    try:
        import google.auth  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("google-auth", "gcs", "Fetching gs:// with credentials") from error
