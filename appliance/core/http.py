"""Rules of HTTP that the config, the proxy and downloads share: headers, addresses, proxies of the environment."""

from __future__ import annotations

import re
from urllib.request import getproxies, proxy_bypass

from yarl import URL

# RFC 9110, section 7.6.1, and older names for the same; each belongs to one connection.
HOP_BY_HOP_HEADERS = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# The HTTP client sets these itself.
FRAMING_HEADERS = frozenset({"accept-encoding", "content-length", "expect", "host"})

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


def join_url(base: str, path: str, query: str = "") -> URL:
    """
    Return the URL of a route such as ``/v1/embeddings`` or ``/tokenize`` under a base URL with or without a version.

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


def environment_proxy(origin: URL) -> URL | None:
    """Return the proxy that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name for an origin; None is none."""
    proxy = getproxies().get(origin.scheme)
    if not proxy or proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    return URL(proxy if "://" in proxy else f"http://{proxy}")
