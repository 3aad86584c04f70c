"""The caller of a request: the API key it was sent with, and what that allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from appliance.core.model import Operation


@dataclass(frozen=True, slots=True)
class Principal:
    """An API key by its name, never by its value; None is no restriction."""

    name: str
    models: frozenset[str] | None = None
    operations: frozenset[Operation] | None = None
    is_admin: bool = False

    def may_use(self, *names: str) -> bool:
        """Return whether it may use a model with these names."""
        return self.models is None or not self.models.isdisjoint(names)

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


def is_local() -> bool:
    """Return whether the client of this task is on this machine, as far as its connection tells."""
    return _current.get().is_local


def is_foreign() -> bool:
    """Return whether a page of another origin may have sent the request, which may see no more than without a key."""
    return _current.get().is_foreign


@contextmanager
def authenticated(principal: Principal | None, *, is_local: bool = False) -> Iterator[None]:
    """Have the block, and tasks that are started in it, work for this principal, `is_local` on this machine."""
    with _use(_Caller(principal, is_local)):
        yield


@contextmanager
def foreign() -> Iterator[None]:
    """Have the block work for a page of another origin."""
    with _use(replace(_current.get(), is_foreign=True)):
        yield


@contextmanager
def _use(caller: _Caller) -> Iterator[None]:
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
