"""Tags of routes: the protocol, whether it is a probe, and whether it needs no API key."""

from __future__ import annotations

from collections.abc import Iterable

from litestar.handlers import BaseRouteHandler

from appliance.auth import PUBLIC

PROTOCOL, PROBE = "protocol", "is_probe"
"""
Keys of a handler's `opt`: the name of its protocol; whether platforms request it every few seconds, so that it is not
logged and counted.
"""


def tag_protocol(protocol: str, handlers: Iterable[BaseRouteHandler]) -> list[BaseRouteHandler]:
    """Tag the handlers with the name of their protocol."""
    return _tag(PROTOCOL, protocol, handlers)


def tag_probes(handlers: Iterable[BaseRouteHandler]) -> list[BaseRouteHandler]:
    """Tag the handlers as probes."""
    return _tag(PROBE, True, handlers)


def public_paths(handlers: Iterable[BaseRouteHandler]) -> frozenset[str]:
    """Return the paths of the handlers that are tagged as public."""
    return frozenset(path for handler in handlers if handler.opt.get(PUBLIC) for path in handler.paths)


def _tag(key: str, value: object, handlers: Iterable[BaseRouteHandler]) -> list[BaseRouteHandler]:
    tagged = list(handlers)
    for handler in tagged:
        handler.opt[key] = value
    return tagged
