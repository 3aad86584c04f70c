"""API keys: the caller of a request by its key, and what that allows.

Sources: RFC 6750, section 2.1, for `Authorization`; Anthropic's and Azure's clients for headers with the key only.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from appliance.config.server import ServerConfig
from appliance.core.errors import ForbiddenError, UnauthenticatedError
from appliance.core.model import Operation

Header = tuple[bytes, bytes]

_KEY_HEADERS = frozenset({b"x-api-key", b"api-key"})


@dataclass(frozen=True, slots=True)
class Principal:
    """An API key by its name, never by its value; None is no restriction."""

    name: str
    models: frozenset[str] | None = None
    operations: frozenset[Operation] | None = None
    is_admin: bool = False

    def may_request(self, operation: Operation) -> bool:
        """Return whether it may request this operation."""
        return self.operations is None or operation in self.operations


_EVERYBODY = Principal("", is_admin=True)
_NOBODY = Principal("", frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class _Caller:
    principal: Principal | None = None
    is_local: bool = False
    is_foreign: bool = False


_current: ContextVar[_Caller] = ContextVar("caller", default=_Caller())  # noqa: B039 - frozen


def current_principal() -> Principal | None:
    """Return the principal that this task works for; None without keys, or if the key is missing or unknown."""
    return _current.get().principal


@contextmanager
def authenticated(principal: Principal | None, *, is_local: bool = False, is_foreign: bool = False) -> Iterator[None]:
    """Have the block, and tasks that are started in it, work for this principal.

    `is_local`: its client is on this machine, as far as its connection tells. `is_foreign`: a page of another origin
    may have sent the request, which may see no more than without a key.
    """
    token = _current.set(_Caller(principal, is_local, is_foreign))
    try:
        yield
    finally:
        _current.reset(token)


class Authorizer:
    """Decides what the current principal may do; without keys everybody may do everything.

    Each `require_...` raises an `UnauthenticatedError` without a valid key, otherwise a `ForbiddenError`.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.apply(config)

    def apply(self, config: ServerConfig) -> None:
        """Use this config from now on; running requests are not affected."""
        self.are_metrics_open = config.metrics == "open"
        """Whether metrics need no key."""
        keys = []
        for key in config.api_keys or ():
            models = None if key.models is None else frozenset(key.models)
            operations = None if key.operations is None else frozenset(key.operations)
            keys.append((key.digest, Principal(key.name, models, operations, key.admin)))
        self._keys = tuple(keys)

    @property
    def is_closed(self) -> bool:
        """Whether there are keys, so that nobody may do anything without one."""
        return bool(self._keys)

    def authenticate(self, headers: Iterable[Header]) -> tuple[Principal | None, list[Header]]:
        """Return the principal of these headers, and the headers without our keys, for models and upstreams."""
        if not self._keys:
            return None, list(headers)
        principal, kept = None, []
        for header in headers:
            found = self._principal_of(header)
            principal = principal or found
            if found is None:
                kept.append(header)
        return principal, kept

    def refusal(self, headers: Iterable[Header]) -> UnauthenticatedError:
        """Return the error for a request with these headers, none of which has one of the keys."""
        names = {name.lower() for name, value in headers if value.strip()}
        return UnauthenticatedError(has_key=not names.isdisjoint({*_KEY_HEADERS, b"authorization"}))

    def principal_named(self, name: str) -> Principal | None:
        """Return the principal of the key with this name; None if there is none any more."""
        return next((principal for _, principal in self._keys if principal.name == name), None)

    @property
    def _principal(self) -> Principal:
        """Whoever asks: the key, or without one everybody if there are no keys."""
        is_open = not self.is_closed and not _current.get().is_foreign
        return current_principal() or (_EVERYBODY if is_open else _NOBODY)

    def sees(self, *names: str) -> bool:
        """Return whether the current principal may see a model with these names."""
        models = self._principal.models
        return models is None or not models.isdisjoint(names)

    @property
    def sees_every_model(self) -> bool:
        """Whether the current principal may use every model, and read the config, errors and metrics of the server."""
        return self._principal.models is None

    @property
    def is_operator(self) -> bool:
        """Whether the current principal may read why the server fails: by its key, or without keys on this machine."""
        principal = self._principal
        has_key = principal is not _EVERYBODY
        return (principal.is_admin or principal.models is None) and (has_key or _current.get().is_local)

    def may_request(self, operation: Operation) -> bool:
        """Return whether the current principal may request this operation."""
        return self._principal.may_request(operation)

    def require_key(self) -> None:
        """Return if there is a principal, or if there are no keys."""
        if self.is_closed and current_principal() is None:
            raise UnauthenticatedError

    def require_operation(self, operation: Operation) -> None:
        """Return if the current principal may request this operation."""
        self._require(self.may_request(operation), f"request {operation}", "operations")

    def require_any(self, operations: Sequence[Operation]) -> None:
        """Return if the current principal may request one of these operations."""
        if not any(map(self.may_request, operations)):
            self.require_operation(operations[0])

    def require_admin(self) -> None:
        """Return if the current principal may load and unload models."""
        self._require(self._principal.is_admin, "load and unload models", "admin")

    def require_metrics(self) -> None:
        """Return if the current principal may read the metrics of all models."""
        if not self.are_metrics_open:
            self.require_every_model("read the metrics of all models")

    def require_every_model(self, action: str) -> None:
        """Return if the current principal may use every model, which `action` requires."""
        self._require(self.sees_every_model, action, "models")

    def _require(self, is_allowed: bool, action: str, key: str) -> None:
        self.require_key()
        if not is_allowed:
            raise ForbiddenError(
                f"The key {self._principal.name!r} may not {action}; server.api_keys[].{key} in the config allows it"
            )

    def _principal_of(self, header: Header) -> Principal | None:
        name, value = header[0].lower(), header[1].strip()
        if name not in _KEY_HEADERS:
            scheme, _, value = value.partition(b" ")
            if name != b"authorization" or scheme.lower() != b"bearer":
                return None
        digest, found = hashlib.sha256(value.strip()).digest(), None
        # All keys, each in constant time, so that the duration tells nothing about any key.
        for known, principal in self._keys:
            if hmac.compare_digest(known, digest):
                found = principal
        return found
