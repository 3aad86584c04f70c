"""API keys: the caller of a request by its key, and what that allows.

Sources: RFC 6750, section 2.1, for `Authorization`; Anthropic's and Azure's clients for headers with the key only.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NoReturn

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
        self._keys = tuple(
            (
                key.digest,
                Principal(
                    key.name,
                    None if key.models is None else frozenset(key.models),
                    None if key.operations is None else frozenset(key.operations),
                    key.admin,
                ),
            )
            for key in config.api_keys or ()
        )

    @property
    def is_closed(self) -> bool:
        """Whether there are keys, so that nobody may do anything without one."""
        return bool(self._keys)

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
        if principal is None:
            return self._is_for_everybody
        return principal.models is None or not principal.models.isdisjoint(names)

    @property
    def sees_every_model(self) -> bool:
        """Whether the current principal may use every model, and read the config, errors and metrics of the server."""
        principal = current_principal()
        return self._is_for_everybody if principal is None else principal.models is None

    @property
    def is_operator(self) -> bool:
        """Whether the current principal may read why the server fails: by its key, or without keys on this machine."""
        principal = current_principal()
        if principal is None:
            return self._is_for_everybody and _current.get().is_local
        return principal.is_admin or principal.models is None

    def may_request(self, operation: Operation) -> bool:
        """Return whether the current principal may request this operation."""
        principal = current_principal()
        return self._is_for_everybody if principal is None else principal.may_request(operation)

    @property
    def _is_for_everybody(self) -> bool:
        return not self.is_closed and not _current.get().is_foreign

    def require_key(self) -> None:
        """Return if there is a principal, or if there are no keys."""
        if self.is_closed and current_principal() is None:
            raise UnauthenticatedError

    def require_operation(self, operation: Operation) -> None:
        """Return if the current principal may request this operation."""
        self.require_key()
        if not self.may_request(operation):
            _refuse(f"request {operation}", "operations")

    def require_admin(self) -> None:
        """Return if the current principal may load and unload models."""
        self.require_key()
        principal = current_principal()
        if principal is not None and not principal.is_admin:
            _refuse("load and unload models", "admin")

    def require_metrics(self) -> None:
        """Return if the current principal may read the metrics of all models."""
        if not self.are_metrics_open:
            self.require_every_model("read the metrics of all models")

    def require_every_model(self, action: str) -> None:
        """Return if the current principal may use every model, which `action` requires."""
        self.require_key()
        if not self.sees_every_model:
            _refuse(action, "models")

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


def _refuse(action: str, key: str) -> NoReturn:
    principal = current_principal()
    raise ForbiddenError(
        f"The key {principal.name if principal else ''!r} may not {action}; server.api_keys[].{key} in the config "
        "allows it"
    )
