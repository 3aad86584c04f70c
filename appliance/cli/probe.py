"""The command `probe`: whether a server of this machine is live or ready, asked where its config says it listens."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from appliance.config.server import ServerConfig
from appliance.core.errors import ApplianceError

PATHS: Mapping[str, str] = {"live": "/livez", "ready": "/readyz", "started": "/startupz"}

# Where a server that listens on all addresses is asked.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class ProbeError(ApplianceError):
    """The server cannot be asked."""


@dataclass(frozen=True, slots=True)
class Command:
    """The arguments that a running `appliance serve` was given, its directory and its environment."""

    arguments: Sequence[str]
    directory: Path
    environ: Mapping[str, str]


def running() -> Command:
    """The one server that runs here, and may be looked at.

    Raises:
        ProbeError: there is none, or more than one.
    """
    found = dict(_servers())
    # Workers are children of a server, and look like it.
    first = [command for process, command in found.items() if process.ppid() not in {each.pid for each in found}]
    if len(first) != 1:
        many = "several servers run" if first else "no server runs"
        raise ProbeError(f"{many} here that may be looked at; name the FILE of the one that is meant")
    return first[0]


def _servers() -> Iterator[tuple[psutil.Process, Command]]:
    for process in psutil.process_iter():
        try:
            arguments = _arguments(process.cmdline())
            if arguments is not None:
                yield process, Command(arguments, Path(process.cwd()), process.environ())
        except psutil.Error:
            # It has ended, or is another user's.
            continue


def _arguments(line: Sequence[str]) -> Sequence[str] | None:
    """What follows `appliance serve` on the command line of a Python; None where it is another."""
    if not line or not Path(line[0]).name.startswith("python"):
        return None
    for index in range(1, len(line) - 1):
        if Path(line[index]).name == "appliance" and line[index + 1] == "serve":
            return line[index + 2 :]
    return None


def ask(server: ServerConfig, what: str, seconds: float) -> tuple[bool, str]:
    """Whether the server says that it is `what`, one of `PATHS`, and what it says.

    Raises:
        ProbeError: it cannot be asked.
    """
    connection = _connection(server, seconds)
    try:
        connection.request("GET", PATHS[what])
        response = connection.getresponse()
        said = _told(what, response.status, response.read())
        return said == what, said
    except (OSError, http.client.HTTPException) as error:
        where = f"{connection.host} port {connection.port}"
        raise ProbeError(f"not {what}: {where} does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _connection(server: ServerConfig, seconds: float) -> http.client.HTTPConnection:
    host = _LOOPBACK.get(server.host, server.host)
    if server.probe_port is not None or server.tls is None:
        return http.client.HTTPConnection(host, server.probe_port or server.port, timeout=seconds)
    if server.tls.client_ca is not None:
        raise ProbeError(
            "server.tls.client_ca has every client of server.port show a certificate, and a probe has none; "
            "set server.probe_port"
        )
    # Its certificate is for the name that clients know it by. Nothing is sent that others may not know.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, server.port, timeout=seconds, context=context)


def _told(what: str, status: int, body: bytes) -> str:
    """A line for the answer, and where it is no, one for each model that is not ready."""
    try:
        said: Any = json.loads(body)  # Any: JSON values
        if status == 200:
            return str(said["status"])
        reason = f": {said['reason']}" if "reason" in said else ""
        others = [each for each in said["models"] if each["state"] != "ready"]
        return "\n".join(
            [f"{said['status']}{reason}", *(f"{each['name']} is {each['state']}: {each['reason']}" for each in others)]
        )
    except (ValueError, TypeError, KeyError):
        return f"not {what}: the answer has status {status} and is none of this server's"
