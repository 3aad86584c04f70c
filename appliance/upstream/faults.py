"""
What aiohttp says of a connection, in our words.

aiohttp is imported where it is used: it takes a good part of the time in which a config is checked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from appliance.errors import GatewayError, GatewayTimeoutError, UnreachableError

if TYPE_CHECKING:
    from aiohttp import ClientConnectorError

UNREACHABLE = "The upstream cannot be reached."
"""
All that clients are told of it: addresses and certificates are not their business.
"""


def broken() -> tuple[type[Exception], ...]:
    """
    What is raised when a connection does not come about or breaks; timeouts are among it.
    """
    from aiohttp import ClientError

    return ClientError, OSError


def unanswered(error: Exception) -> GatewayError:
    """
    The error for a request that got no answer.
    """
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
    """
    Why there is no connection, with the remedy.
    """
    from aiohttp import (
        ClientConnectorCertificateError,
        ClientConnectorDNSError,
        ClientConnectorSSLError,
        ClientProxyConnectionError,
    )

    place = f"{error.host}:{error.port}"
    match error:
        case ClientConnectorCertificateError():
            return f"the certificate of {place} is not trusted: {error.certificate_error}; name its authority in tls.ca"
        case ClientConnectorSSLError():
            return f"{place} and we do not agree on TLS: {error.os_error}; check tls, and that its url is https://"
        case ClientConnectorDNSError():
            return f"the host {error.host} is unknown: {error.os_error.strerror or error.os_error}; check its url"
        case ClientProxyConnectionError():
            return f"the proxy of the environment on the way to {place} cannot be reached: {error.os_error}"
        case _:
            # asyncio and uvloop put words of their own in the place of the system's.
            why = os.strerror(error.os_error.errno) if error.os_error.errno else error.os_error
            return f"{place} cannot be reached: {why}"
