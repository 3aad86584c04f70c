"""
The keys of the config: recognised in requests, asked before anything is done, and exchanged while the server runs.
"""

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

# Anthropic's clients and Azure's have a header of their own for the key alone.
_BARE = frozenset({b"x-api-key", b"api-key"})


class Authorizer:
    """Who may do what; without keys everybody may do everything.

    Each refusal is an `UnauthenticatedError` where nobody was recognised, and else a `ForbiddenError`.
    """

    def __init__(self, settings: AuthConfig) -> None:
        self.apply(settings)

    def apply(self, settings: AuthConfig) -> None:
        """Go by these settings from now on; requests that were let in go on."""
        keys = tuple((key.digest, _caller(key)) for key in settings.keys)
        self._settings, self._keys = settings, keys

    @property
    def is_closed(self) -> bool:
        """There are keys, and so nobody may do anything without one."""
        return bool(self._keys)

    @property
    def are_metrics_open(self) -> bool:
        """Everybody may read metrics, whoever they are."""
        return self._settings.are_metrics_open

    def recognise(self, headers: Iterable[Header]) -> tuple[Principal | None, list[Header]]:
        """Who sent these headers, and the headers without our keys: no model and no upstream gets to see one."""
        caller, kept = None, []
        for header in headers:
            found = self._caller_of(header) if self._keys else None
            caller = caller or found
            if found is None:
                kept.append(header)
        return caller, kept

    def sees(self, *names: str) -> bool:
        """Whether a model that has these names is there for the current caller."""
        caller = current_principal()
        return caller.may_use(*names) if caller is not None else self._is_for_everybody

    @property
    def sees_every_model(self) -> bool:
        """
        The current caller may use every model, and read what the server says of itself: its config, faults, metrics.
        """
        caller = current_principal()
        return caller.models is None if caller is not None else self._is_for_everybody

    @property
    def is_operator(self) -> bool:
        """
        The current caller runs the server, and may read why it fails: by its key, or without keys on this machine.
        """
        caller = current_principal()
        if caller is not None:
            return caller.is_admin or caller.models is None
        return self._is_for_everybody and is_local()

    def may_request(self, operation: Operation) -> bool:
        """Whether the current caller may ask models for this."""
        caller = current_principal()
        return caller.may_request(operation) if caller is not None else self._is_for_everybody

    @property
    def _is_for_everybody(self) -> bool:
        return not self.is_closed and not is_foreign()

    def require_key(self) -> None:
        """Return for whoever was recognised, and for everybody where there are no keys."""
        if self.is_closed and current_principal() is None:
            raise UnauthenticatedError

    def require_operation(self, operation: Operation) -> None:
        """Return where the current caller may ask for this operation."""
        self.require_key()
        if not self.may_request(operation):
            self._refuse(f"ask for {operation}", "server.api_keys[].operations")

    def require_admin(self) -> None:
        """Return where the current caller may load and unload models."""
        self.require_key()
        caller = current_principal()
        if caller is not None and not caller.is_admin:
            self._refuse("load and unload models", "server.api_keys[].admin")

    def require_metrics(self) -> None:
        """Return where the current caller may read what is measured of all models."""
        if not self.are_metrics_open:
            self.require_every_model("read the metrics of all models")

    def require_every_model(self, what: str) -> None:
        """Return where the current caller may use every model, without which it may not do `what`."""
        self.require_key()
        if not self.sees_every_model:
            self._refuse(what, "server.api_keys[].models")

    def _caller_of(self, header: Header) -> Principal | None:
        value = _key_in(header)
        if value is None:
            return None
        digest = hashlib.sha256(value).digest()
        found = None
        # All of them, each in constant time: how long it takes says nothing of any key.
        for known, caller in self._keys:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _refuse(self, what: str, where: str) -> NoReturn:
        self.require_key()
        caller = current_principal()
        raise ForbiddenError(
            f"The key {caller.name if caller else ''!r} may not {what}; {where} in the config allows it"
        )


def _caller(key: KeyConfig) -> Principal:
    models = None if key.models is None else frozenset(key.models)
    operations = None if key.operations is None else frozenset(key.operations)
    return Principal(key.name, models, operations, key.admin)


def _key_in(header: Header) -> bytes | None:
    """What may be a key: all of a header that is for keys, or what follows ``Bearer`` (RFC 6750, section 2.1)."""
    name, value = header[0].lower(), header[1].strip()
    if name in _BARE:
        return value
    scheme, _, token = value.partition(b" ")
    return token.strip() if name == b"authorization" and scheme.lower() == b"bearer" else None
