"""What aiohttp says of a connection, in our words.

aiohttp is imported where it is used: it takes a good part of the time in which a config is checked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from appliance.core.errors import GatewayError, GatewayTimeoutError, UnreachableError

if TYPE_CHECKING:
    from aiohttp import ClientConnectorError

UNREACHABLE = "The upstream cannot be reached."
"""
All that clients are told of it: addresses and certificates are not their business.
"""

_OTHER_NAMES = frozenset({62, 64})
_OUT_OF_TIME = frozenset({9, 10})


def broken() -> tuple[type[Exception], ...]:
    """What is raised when a connection does not come about or breaks; timeouts are among it."""
    from aiohttp import ClientError

    return ClientError, OSError


def unanswered(error: Exception) -> GatewayError:
    """The error for a request that got no answer."""
    from aiohttp import (
        ClientConnectionError,
        ClientConnectorError,
        ClientHttpProxyError,
        ClientPayloadError,
        ConnectionTimeoutError,
    )

    match error:
        case ConnectionTimeoutError():
            return UnreachableError(
                "The upstream cannot be reached in time.",
                detail="no connection to it came about within timeouts.connect_seconds",
            )
        case TimeoutError():
            return GatewayTimeoutError(
                "The upstream did not answer in time.",
                detail="it took the request, and no answer came within timeouts.first_byte_seconds",
            )
        case ClientHttpProxyError():
            said = f"{error.status} {error.message}"
            return UnreachableError(UNREACHABLE, detail=f"the proxy of the environment does not lead there: {said}")
        case ClientConnectorError():
            return UnreachableError(UNREACHABLE, detail=_unconnected(error))
        case ClientPayloadError():
            return GatewayError("The upstream's answer is not HTTP.", detail=f"its answer never comes: {error}")
        case ClientConnectionError() | OSError():
            return GatewayError(
                "The upstream closed the connection before it answered.",
                detail=f"it closed the connection before it answered: {error}",
            )
        case _:
            return GatewayError("The upstream's answer is not HTTP.", detail=f"its answer is not HTTP: {error}")


def _unconnected(error: ClientConnectorError) -> str:
    """Why there is no connection, with the remedy."""
    from aiohttp import (
        ClientConnectorCertificateError,
        ClientConnectorDNSError,
        ClientConnectorSSLError,
        ClientProxyConnectionError,
    )

    place = f"{error.host}:{error.port}"
    match error:
        case ClientConnectorCertificateError():
            return _untrusted(place, error.certificate_error)
        case ClientConnectorSSLError():
            why = getattr(error.os_error, "reason", None) or error.os_error
            return f"{place} and we do not agree on TLS: {why}; check tls, and that its url is https://"
        case ClientConnectorDNSError():
            return f"the host {error.host} is unknown: {error.os_error.strerror or error.os_error}; check its url"
        case ClientProxyConnectionError():
            return f"the proxy of the environment on the way to {place} cannot be reached: {error.os_error}"
        case _:
            # asyncio and uvloop put words of their own in the place of the system's.
            why = os.strerror(error.os_error.errno) if error.os_error.errno else error.os_error
            return f"{place} cannot be reached: {why}"


def _untrusted(place: str, error: Exception) -> str:
    """What is wrong with a certificate, by OpenSSL's code of it (``X509_V_ERR_*`` of its x509_vfy.h)."""
    code = getattr(error, "verify_code", None)
    why = str(getattr(error, "verify_message", error)).rstrip(".")
    if code in _OTHER_NAMES:
        return f"the certificate of {place} is for other names than this; check the host of its url"
    if code in _OUT_OF_TIME:
        return f"the certificate of {place} is not valid now: {why}; it must be renewed there"
    return f"the certificate of {place} is not trusted: {why}; name its authority in tls.ca"
