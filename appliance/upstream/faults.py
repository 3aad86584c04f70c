"""
What aiohttp says of a connection, in our words.

aiohttp is imported where it is used: it takes a good part of the time in which a config is checked.
"""

from __future__ import annotations

from appliance.errors import GatewayError, GatewayTimeoutError


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
    from aiohttp import ClientConnectionError, ClientConnectorError, ConnectionTimeoutError

    match error:
        case ConnectionTimeoutError():
            return GatewayError("The upstream cannot be reached in time.")
        case TimeoutError():
            return GatewayTimeoutError("The upstream did not answer in time.")
        case ClientConnectorError():
            return GatewayError("The upstream cannot be reached.")
        case ClientConnectionError() | OSError():
            return GatewayError("The upstream closed the connection before it answered.")
        case _:
            return GatewayError("The upstream's answer is not HTTP.")
