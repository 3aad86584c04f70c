"""What the user's environment says about any request on the web: proxies, and logins."""

from __future__ import annotations

import netrc
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import urllib3
from yarl import URL


def connections(origin: URL, kept: int) -> urllib3.PoolManager:
    """Connections to a host, through the proxy that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name for it, of which
    `kept` stay open.
    """
    proxy = proxy_for(origin)
    # The certificates that Python trusts: those of SSL_CERT_FILE, or the system's.
    context = ssl.create_default_context() if "https" in (origin.scheme, proxy and proxy.scheme) else None
    if proxy is None:
        return urllib3.PoolManager(maxsize=kept, ssl_context=context)
    return urllib3.ProxyManager(
        str(proxy.with_user(None)),
        proxy_headers=_login_at(proxy),
        maxsize=kept,
        ssl_context=context,
        proxy_ssl_context=context,
    )


def login_for(url: URL) -> Mapping[str, str]:
    """The header with the login that the user's `.netrc` has for a host."""
    try:
        path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        entry = netrc.netrc(path).authenticators(url.host or "")
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return {}
    return urllib3.make_headers(basic_auth=f"{entry[0]}:{entry[2] or ''}") if entry else {}


def proxy_for(origin: URL) -> URL | None:
    """The proxy that the environment names for a host; None is none."""
    proxy = getproxies().get(origin.scheme)
    if not proxy or proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    return URL(proxy if "://" in proxy else f"http://{proxy}")


def _login_at(proxy: URL) -> Mapping[str, str]:
    if proxy.user is None:
        return {}
    return urllib3.make_headers(proxy_basic_auth=f"{proxy.user}:{proxy.password or ''}")
