"""Authentication by API keys, and what each key allows; the keys may change while the server runs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import NoReturn

from appliance.auth.principal import Principal, current_principal, is_foreign, is_local
from appliance.config.security import AuthConfig, KeyConfig
from appliance.core.errors import ForbiddenError, UnauthenticatedError
from appliance.core.model import Operation

Header = tuple[bytes, bytes]

# Headers of Anthropic's and Azure's clients, which have the key only.
_KEY_HEADERS = frozenset({b"x-api-key", b"api-key"})


class Authorizer:
    """Decides what the current principal may do; without keys everybody may do everything.

    Each `require_...` raises an `UnauthenticatedError` without a valid key, otherwise a `ForbiddenError`.
    """

    def __init__(self, config: AuthConfig) -> None:
        self.apply(config)

    def apply(self, config: AuthConfig) -> None:
        """Use this config from now on; running requests are not affected."""
        keys = tuple((key.digest, _principal(key)) for key in config.keys)
        self._config, self._keys = config, keys

    @property
    def is_closed(self) -> bool:
        """Whether there are keys, so that nobody may do anything without one."""
        return bool(self._keys)

    @property
    def are_metrics_open(self) -> bool:
        """Whether metrics need no key."""
        return self._config.are_metrics_open

    def authenticate(self, headers: Iterable[Header]) -> tuple[Principal | None, list[Header]]:
        """Return the principal of these headers, and the headers without our keys, for models and upstreams."""
        principal, kept = None, []
        for header in headers:
            found = self._principal_of(header) if self._keys else None
            principal = principal or found
            if found is None:
                kept.append(header)
        return principal, kept

    def sees(self, *names: str) -> bool:
        """Return whether the current principal may see a model with these names."""
        principal = current_principal()
        return principal.may_use(*names) if principal is not None else self._is_for_everybody

    @property
    def sees_every_model(self) -> bool:
        """Whether the current principal may use every model, and read the config, errors and metrics of the server."""
        principal = current_principal()
        return principal.models is None if principal is not None else self._is_for_everybody

    @property
    def is_operator(self) -> bool:
        """Whether the current principal may read why the server fails: by its key, or without keys on this machine."""
        principal = current_principal()
        if principal is not None:
            return principal.is_admin or principal.models is None
        return self._is_for_everybody and is_local()

    def may_request(self, operation: Operation) -> bool:
        """Return whether the current principal may request this operation."""
        principal = current_principal()
        return principal.may_request(operation) if principal is not None else self._is_for_everybody

    @property
    def _is_for_everybody(self) -> bool:
        return not self.is_closed and not is_foreign()

    def require_key(self) -> None:
        """Return if there is a principal, or if there are no keys."""
        if self.is_closed and current_principal() is None:
            raise UnauthenticatedError

    def require_operation(self, operation: Operation) -> None:
        """Return if the current principal may request this operation."""
        self.require_key()
        if not self.may_request(operation):
            self._refuse(f"request {operation}", "server.api_keys[].operations")

    def require_admin(self) -> None:
        """Return if the current principal may load and unload models."""
        self.require_key()
        principal = current_principal()
        if principal is not None and not principal.is_admin:
            self._refuse("load and unload models", "server.api_keys[].admin")

    def require_metrics(self) -> None:
        """Return if the current principal may read the metrics of all models."""
        if not self.are_metrics_open:
            self.require_every_model("read the metrics of all models")

    def require_every_model(self, action: str) -> None:
        """Return if the current principal may use every model, which `action` requires."""
        self.require_key()
        if not self.sees_every_model:
            self._refuse(action, "server.api_keys[].models")

    def _principal_of(self, header: Header) -> Principal | None:
        value = _key_in(header)
        if value is None:
            return None
        digest = hashlib.sha256(value).digest()
        found = None
        # All keys, each in constant time, so that the duration tells nothing about any key.
        for known, principal in self._keys:
            if hmac.compare_digest(known, digest):
                found = principal
        return found

    def _refuse(self, action: str, key: str) -> NoReturn:
        self.require_key()
        principal = current_principal()
        raise ForbiddenError(
            f"The key {principal.name if principal else ''!r} may not {action}; {key} in the config allows it"
        )


def _principal(key: KeyConfig) -> Principal:
    models = None if key.models is None else frozenset(key.models)
    operations = None if key.operations is None else frozenset(key.operations)
    return Principal(key.name, models, operations, key.admin)


def _key_in(header: Header) -> bytes | None:
    """Return what may be a key: the value of a header for keys, or what follows ``Bearer`` (RFC 6750, section 2.1)."""
    name, value = header[0].lower(), header[1].strip()
    if name in _KEY_HEADERS:
        return value
    scheme, _, token = value.partition(b" ")
    return token.strip() if name == b"authorization" and scheme.lower() == b"bearer" else None
