"""Who asks: the key that a request came with, and what it may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from appliance.core.model import Operation


@dataclass(frozen=True, slots=True)
class Principal:
    """A key by its name, never by its value; None is no limit."""

    name: str
    models: frozenset[str] | None = None
    operations: frozenset[Operation] | None = None
    is_admin: bool = False

    def may_use(self, *names: str) -> bool:
        """Whether it may use a model under one of these names."""
        return self.models is None or not self.models.isdisjoint(names)

    def may_request(self, operation: Operation) -> bool:
        """Whether it may ask models for this."""
        return self.operations is None or operation in self.operations


_current: ContextVar[Principal | None] = ContextVar("caller", default=None)
_local: ContextVar[bool] = ContextVar("local", default=False)
_foreign: ContextVar[bool] = ContextVar("foreign", default=False)


def current_principal() -> Principal | None:
    """Who this task works for; None where no keys are configured, or nobody was recognised."""
    return _current.get()


def is_local() -> bool:
    """Whether this task works for a client on this machine, as far as its connection tells."""
    return _local.get()


def is_foreign() -> bool:
    """Whether this task may work for a page of another origin, which is told as little as a client without its key."""
    return _foreign.get()


@contextmanager
def foreign() -> Iterator[None]:
    """Until the end of the block the request is one of another origin's page."""
    token = _foreign.set(True)
    try:
        yield
    finally:
        _foreign.reset(token)


@contextmanager
def authenticated(caller: Principal | None, *, local: bool = False) -> Iterator[None]:
    """Make it the current caller until the end of the block, in tasks begun meanwhile as well.

    `local` is that the client is on this machine.
    """
    token, local_token = _current.set(caller), _local.set(local)
    try:
        yield
    finally:
        _current.reset(token)
        _local.reset(local_token)
