"""What a route says of itself to those who watch requests."""

from __future__ import annotations

from collections.abc import Iterable

from litestar.handlers import BaseRouteHandler

PROTOCOL, PROBE = "protocol", "probe"
"""
Keys of a handler's `opt`: the protocol it speaks, and that machines ask it every few seconds.
"""


def tag_protocol(protocol: str, handlers: Iterable[BaseRouteHandler]) -> list[BaseRouteHandler]:
    """The handlers as those of a protocol."""
    made = list(handlers)
    for handler in made:
        handler.opt[PROTOCOL] = protocol
    return made


def probing(handlers: Iterable[BaseRouteHandler]) -> list[BaseRouteHandler]:
    """The handlers as those of probes, of which nobody wants to hear."""
    made = list(handlers)
    for handler in made:
        handler.opt[PROBE] = True
    return made
