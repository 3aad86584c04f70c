"""Names of this server in the `Host` header, and which of them cannot be rebound by DNS."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from appliance.config.server import is_loopback

if TYPE_CHECKING:
    from litestar.types import HTTPScope

# No public DNS server resolves these: RFC 6761, 6762, 8375; ICANN reserved `internal` in 2024, and `svc` is what
# Kubernetes appends to the names of services.
_PRIVATE = (".localhost", ".local", ".internal", ".svc", ".test", ".home.arpa")


def is_local(scope: HTTPScope) -> bool:
    """Return whether the client is on this machine and requests this machine, with no proxy in between."""
    client = scope["client"]
    if client is None or not is_loopback(client[0].removeprefix("::ffff:")):
        return False
    for name, value in scope["headers"]:
        if name.lower() == b"host":
            named = split_authority(value.decode("latin-1"))
            if named is None or not is_loopback(named[0]):
                return False
        elif name.lower().startswith((b"x-forwarded-", b"x-real-ip", b"forwarded", b"via", b"k-proxy-")):
            return False
    return True


class AllowedHosts:
    """The allowed names; ``*.example.com`` is every name below it.

    Private names cannot be rebound, and are always allowed: IP addresses, names without a dot, and those below a
    private domain.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in allowed)

    def allow(self, authority: str) -> bool:
        """Return whether a `Host` header, with or without a port, is empty or has an allowed name."""
        if not authority or "*" in self._names:
            return True
        if (split := split_authority(authority)) is None:
            return False
        name = split[0]
        if _is_private(name):
            return True
        labels = name.split(".")
        wildcards = {".".join(["*", *labels[start:]]) for start in range(1, len(labels))}
        return not self._names.isdisjoint({name, *wildcards})


@lru_cache(maxsize=256)
def _is_private(name: str) -> bool:
    with suppress(ValueError):
        ip_address(name)
        return True
    return "." not in name or name.endswith(_PRIVATE)


@lru_cache(maxsize=256)
def split_authority(authority: str, default_port: int = 80) -> tuple[str, int] | None:
    """Return the lower-case name and the port of an authority (RFC 3986, section 3.2); None if it is invalid."""
    try:
        parts = urlsplit(f"//{authority}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if name is None or "@" in authority or parts.netloc != authority:
        return None
    return name.removesuffix("."), default_port if port is None else port
