"""Names of this server, and which of them nobody on the internet can point at it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from appliance.config.server import is_loopback

if TYPE_CHECKING:
    from litestar.types import HTTPScope

# No public DNS server answers for these: RFC 6761, 6762, 8375; ICANN reserved `internal` in 2024, and `svc` is what
# Kubernetes appends to the names of services.
_PRIVATE = (".localhost", ".local", ".internal", ".svc", ".test", ".home.arpa")


def is_local(scope: HTTPScope) -> bool:
    """Whether a client on this machine asks for this machine, and no server in between asks for somebody else."""
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


def is_private(name: str) -> bool:
    """Whether a name cannot be rebound: an IP address, a name without a dot, or one below a private domain."""
    try:
        ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE)
    return True


class AllowedHosts:
    """The names that requests may be for, next to the private ones; ``*.example.com`` is every name below it."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in allowed)

    def allow(self, authority: str) -> bool:
        """Whether a `Host` header, with or without a port, has an allowed name; an empty one names nothing."""
        if not authority or "*" in self._names:
            return True
        split = split_authority(authority)
        return split is not None and (is_private(split[0]) or self._names_it(split[0]))

    def _names_it(self, name: str) -> bool:
        labels = name.split(".")
        wildcards = {".".join(["*", *labels[start:]]) for start in range(1, len(labels))}
        return name in self._names or not self._names.isdisjoint(wildcards)


def split_authority(authority: str, default_port: int = 80) -> tuple[str, int] | None:
    """The name in lower case and the port of an authority (RFC 3986, section 3.2); None where it is none."""
    try:
        parts = urlsplit(f"//{authority}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if name is None or "@" in authority or parts.netloc != authority:
        return None
    return name.removesuffix("."), default_port if port is None else port
