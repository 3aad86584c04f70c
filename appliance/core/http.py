"""Rules of HTTP that the config, the proxy and downloads share: headers, addresses, proxies of the environment."""

from __future__ import annotations

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


def has_valid_address(url: str) -> bool:
    """Return whether a URL has a host, and a port that exists."""
    try:
        return bool(URL(url).host)
    except ValueError:
        return False


def address_of(url: str) -> str:
    """Return the host of a URL, and the port unless it is the default: the path and the query can hold keys."""
    return URL(url).host_port_subcomponent or ""


def environment_proxy(origin: URL) -> URL | None:
    """Return the proxy that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name for an origin; None is none."""
    proxy = getproxies().get(origin.scheme)
    if not proxy or proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    return URL(proxy if "://" in proxy else f"http://{proxy}")
