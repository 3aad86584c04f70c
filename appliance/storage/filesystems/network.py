"""The network as the user's environment describes it, for every filesystem: proxies, certificates, `.netrc`."""

from __future__ import annotations

import netrc
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from appliance.config.storage import TransferConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import MissingExtraError, StorageError
from appliance.core.http import EnvironmentProxy, environment_proxy

# The variables of Python and curl, and of requests.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")

_SOCKS_PORT = 1080

# Large enough that the thread of a download seldom waits for the I/O loop.
_BUFFER_BYTES = 512 * 1024


class Connector(aiohttp.TCPConnector):
    """Connects through the proxies of the environment, in the session of any filesystem that uses aiohttp.

    With `trust_env`, aiohttp itself knows neither `ALL_PROXY` nor networks in `NO_PROXY` nor SOCKS, and it refuses an
    `Authorization` header for a host in `.netrc`.
    """

    def __init__(self, **options: Any) -> None:  # Any: aiohttp's own options
        super().__init__(**options)
        self._proxies: dict[URL, EnvironmentProxy | None] = {}

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> aiohttp.connector.Connection:
        proxy = self._proxy_of(req)
        if proxy is not None and not _is_socks(proxy):
            login = _proxy_login(proxy)
            req.update_proxy(proxy.url, None, CIMultiDict(login) if req.is_ssl() else None)
            if not req.is_ssl():
                req.headers.update(login)
        return await super().connect(req, traces, timeout)

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> ResponseHandler:
        proxy = self._proxy_of(req)
        if proxy is None:
            return await super()._create_connection(req, traces, timeout)
        # `connect` gave the request any other kind of proxy.
        return await self._connect_through_socks(proxy, req, timeout.sock_connect)

    def _proxy_of(self, req: aiohttp.ClientRequest) -> EnvironmentProxy | None:
        if req.proxy is not None:
            return None
        origin = req.url.origin()
        if origin not in self._proxies:
            self._proxies[origin] = proxy_of(origin)
        return self._proxies[origin]

    async def _connect_through_socks(
        self, proxy: EnvironmentProxy, req: aiohttp.ClientRequest, seconds: float | None
    ) -> ResponseHandler:
        from python_socks import ProxyError, ProxyType
        from python_socks.async_.asyncio import Proxy

        kind = ProxyType.SOCKS4 if proxy.url.scheme.startswith("socks4") else ProxyType.SOCKS5
        # With `h` and `a` the proxy looks the host up.
        by_proxy = proxy.url.scheme in ("socks5h", "socks4a")
        client = Proxy(
            kind,
            proxy.url.host or "",
            proxy.url.port or _SOCKS_PORT,
            username=proxy.user or None,
            password=proxy.password or None,
            rdns=by_proxy,
        )
        try:
            sock = await client.connect(req.url.host or "", req.port or 0, timeout=seconds)
        except ProxyError as error:
            raise aiohttp.ClientProxyConnectionError(req.connection_key, OSError(str(error))) from error
        context = self._get_ssl_context(req)
        name = req.url.raw_host if context else None
        _, protocol = await self._loop.create_connection(self._factory, sock=sock, ssl=context, server_hostname=name)
        return protocol


def proxy_of(url: URL) -> EnvironmentProxy | None:
    """Return the proxy that the environment names for a URL.

    Raises:
        StorageError: the variable is no address of a proxy.
        MissingExtraError: a SOCKS proxy needs a package that is not installed.
    """
    try:
        proxy = environment_proxy(url.origin())
    except ValueError as error:
        raise StorageError(str(error)) from error
    if proxy is not None and _is_socks(proxy):
        try:
            import python_socks  # noqa: F401 - only whether it is installed
        except ImportError as error:
            raise MissingExtraError("python-socks", "socks", f"the SOCKS proxy in {proxy.variable}") from error
    return proxy


def tls_context(ca_file: Path | str | None = None) -> ssl.SSLContext:
    """Return a context that trusts the system, the files that variables name, and `ca_file` of the store.

    Raises:
        StorageError: a file is missing, or has no certificates.
    """
    context = ssl.create_default_context()
    files = {name: os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)}
    if ca_file is not None:
        files["ca_file of the store"] = str(Path(ca_file).expanduser())
    for source, file in files.items():
        is_directory = Path(file).is_dir()
        try:
            context.load_verify_locations(capath=file if is_directory else None, cafile=None if is_directory else file)
        except OSError as error:
            raise StorageError(f"{source} is {file}, which has no certificates: {error}; name a PEM file") from error
    return context


def client_timeouts(transfer: TransferConfig) -> tuple[float, float]:
    """Return the connect and read timeouts in seconds for a vendor's client.

    The read timeout is longer than `stall_seconds`, because the download detects stalls itself.
    """
    return min(10.0, transfer.stall_seconds), 2 * transfer.stall_seconds


async def session_options(transfer: TransferConfig, ca_file: Path | None = None) -> dict[str, Any]:  # Any: aiohttp's
    """Return the arguments of the `aiohttp.ClientSession` of a filesystem; called in the loop of the session."""
    connect, read = client_timeouts(transfer)
    context = await in_thread(tls_context, ca_file)
    return {
        "connector": Connector(limit=0, ssl=context),
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read),
        "cookie_jar": aiohttp.DummyCookieJar(),
        "auto_decompress": False,
        "read_bufsize": _BUFFER_BYTES,
    }


def basic_login(user: str, password: str) -> str:
    """Return the value of an Authorization header with a user and password.

    Raises:
        StorageError: the user has a colon, which would end it.
    """
    try:
        return aiohttp.encode_basic_auth(user, password)
    except ValueError as error:
        raise StorageError("a user name with ':' cannot be sent to an HTTP server; choose another user") from error


def netrc_login(url: URL) -> Mapping[str, str]:
    """Return the header with the login that `.netrc` has for a host, or none."""
    try:
        path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        entry = netrc.netrc(path).authenticators(url.host or "")
        return {"Authorization": basic_login(entry[0], entry[2] or "")} if entry else {}
    except (OSError, RuntimeError, ValueError, StorageError, netrc.NetrcParseError):
        return {}


def _is_socks(proxy: EnvironmentProxy) -> bool:
    return proxy.url.scheme.startswith("socks")


def _proxy_login(proxy: EnvironmentProxy) -> Mapping[str, str]:
    if not proxy.user and not proxy.password:
        return {}
    return {"Proxy-Authorization": basic_login(proxy.user, proxy.password)}
