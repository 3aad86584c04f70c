"""Rules of HTTP that the config, the proxy and downloads share: headers, addresses, proxies of the environment."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from urllib.request import getproxies_environment, proxy_bypass

from yarl import URL

# RFC 9110, section 7.6.1, and older names for the same; each belongs to one connection.
HOP_BY_HOP_HEADERS = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)

# The HTTP client sets these itself.
FRAMING_HEADERS = frozenset({"accept-encoding", "content-length", "expect", "host"})

_TYPES_OF_JSON = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"})

_PROXY_SCHEMES = frozenset({"http", "https", "socks4", "socks4a", "socks5", "socks5h"})

# v1, v4, v1beta, at the end of a path or within it, such as ``/v1beta/openai``.
_VERSION = re.compile(r"v\d+[a-z0-9]*")


def has_valid_address(url: str) -> bool:
    """Return whether a URL has a host, and a port that exists."""
    try:
        return bool(URL(url).host)
    except ValueError:
        return False


def address_of(url: str) -> str:
    """Return the host of a URL, and the port unless it is the default: the path and the query can hold keys."""
    return URL(url).host_port_subcomponent or ""


@lru_cache(maxsize=256)
def join_url(base: str, path: str, query: str = "") -> URL:
    """Return the URL of a route such as ``/v1/embeddings`` or ``/tokenize`` under a base URL with or without a version.

    A path of version 1 is appended to the base's own version, any other path replaces it.
    The base's query, in which some services expect their API version, comes before the client's.
    """
    url = URL(base)
    parts = [part for part in url.raw_path.split("/") if part]
    if not any(_VERSION.fullmatch(part) for part in parts):
        parts.append("v1")
    if path.startswith("/v1/"):
        path = path.removeprefix("/v1")
    elif _VERSION.fullmatch(parts[-1]):
        parts.pop()
    queries = "&".join(part for part in (url.raw_query_string, query) if part)
    joined = f"{url.origin()}/{'/'.join(parts)}".rstrip("/") + path
    return URL(f"{joined}?{queries}" if queries else joined, encoded=True)


@dataclass(frozen=True, slots=True)
class EnvironmentProxy:
    """A proxy that an environment variable names; `url` is without the login, which is "" and "" if there is none."""

    variable: str
    url: URL
    user: str
    password: str


def environment_proxy(origin: URL) -> EnvironmentProxy | None:
    """Return the proxy that `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` name for an origin; None is none.

    Raises:
        ValueError: the variable is no address of a proxy; the message names it, and not its value, which can hold a
            password.
    """
    proxies = getproxies_environment()
    scheme = next((name for name in (origin.scheme, "all") if proxies.get(name)), None)
    if scheme is None or _bypasses_proxy(origin):
        return None
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    variable = next((name for name in names if os.environ.get(name)), names[1])
    address = proxies[scheme]
    try:
        url = URL(address if "://" in address else f"http://{address}")
    except ValueError:
        url = URL()
    if url.scheme not in _PROXY_SCHEMES or not url.host:
        raise ValueError(
            f"{variable} is not the address of a proxy; write it as http://HOST:PORT or socks5h://HOST:PORT"
        )
    return EnvironmentProxy(variable, url.with_user(None).origin(), url.user or "", url.password or "")


def _bypasses_proxy(origin: URL) -> bool:
    if proxy_bypass(f"{origin.host}:{origin.port}"):
        return True
    try:
        address = ipaddress.ip_address(origin.host or "")
    except ValueError:
        return False
    return any(address in network for network in _networks_without_proxy())


def _networks_without_proxy() -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Yield the networks in `NO_PROXY`, such as `10.0.0.0/8`, which urllib does not know."""
    for name in getproxies_environment().get("no", "").split(","):
        try:
            yield ipaddress.ip_network(name.strip(), strict=False)
        except ValueError:
            continue


def may_be_json(content_type: str) -> bool:
    """Return whether a body may be JSON: clients leave the type out, or send that of a form or a plain text."""
    kind = content_type.split(";")[0].strip().lower()
    return kind in _TYPES_OF_JSON or kind.endswith("json") or kind.startswith("multipart/")
