"""What the user's environment says about any request on the web: proxies, and logins."""

from __future__ import annotations

import netrc
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

import urllib3
from yarl import URL

from appliance.core.http import environment_proxy


def connections(origin: URL, kept: int) -> urllib3.PoolManager:
    """Connections to a host, through the proxy that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` name for it, of which
    `kept` stay open.
    """
    proxy = environment_proxy(origin)
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


def _login_at(proxy: URL) -> Mapping[str, str]:
    if proxy.user is None:
        return {}
    return urllib3.make_headers(proxy_basic_auth=f"{proxy.user}:{proxy.password or ''}")
