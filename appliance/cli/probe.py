"""The command `probe`: asks a server of this machine whether it is live, ready or started."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil

from appliance.cli.options import FILE, Choice, default_file, load_config, overrides
from appliance.cli.serve import listening_at, serve
from appliance.config import LoadedConfig
from appliance.config.server import ServerConfig
from appliance.core.errors import ApplianceError

_PATHS: Mapping[str, str] = {"live": "/livez", "ready": "/readyz", "started": "/startupz"}

# A server that listens on all addresses is asked at the loopback address.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class ProbeError(ApplianceError):
    """The server cannot be asked."""


@click.command()
@click.argument("state", type=Choice(list(_PATHS)), default="live", metavar="[live|ready|started]")
@click.argument("file", type=FILE, required=False)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=4, show_default=True, help="Seconds to wait.")
@overrides
def probe(state: str, file: Path | None, timeout: float, overrides: Sequence[str]) -> None:
    """Ask the server of FILE whether it is live or ready.

    It is asked on this machine, at the address that FILE, the environment and --set configure. Without FILE it is the
    one server that runs here, as in a container. Exit code 0 when it is, 1 when it is not or does not answer.
    """
    loaded = _running_config(overrides) if file is None else load_config(file, overrides)
    is_in_state, answer = _ask(loaded.config.server, state, timeout)
    click.echo(answer)
    sys.exit(0 if is_in_state else 1)


class _Command(NamedTuple):
    """A running `appliance serve`."""

    arguments: list[str]
    directory: Path
    environ: Mapping[str, str]


def _running_config(overrides: Sequence[str]) -> LoadedConfig:
    """The config of the one server that runs here, and that this user may inspect.

    Raises:
        ProbeError: there is none, or more than one.
    """
    found = dict(_servers())
    # Workers are children of a server, and look like it.
    parents = [command for process, command in found.items() if process.ppid() not in {each.pid for each in found}]
    if len(parents) != 1:
        count = "several servers run" if parents else "no server runs"
        raise ProbeError(f"{count} here that may be inspected; name the FILE of the server")
    (command,) = parents
    given = serve.make_context("serve", command.arguments).params
    file = command.directory / (given["file"] or default_file(command.directory))
    overrides = [*given["overrides"], *listening_at(given["host"], given["port"]), *overrides]
    return load_config(file, overrides, environ=command.environ)


def _servers() -> Iterator[tuple[psutil.Process, _Command]]:
    for process in psutil.process_iter():
        # It has ended, or belongs to another user.
        with contextlib.suppress(psutil.Error):
            arguments = _arguments(process.cmdline())
            if arguments is not None:
                yield process, _Command(arguments, Path(process.cwd()), process.environ())


def _arguments(line: list[str]) -> list[str] | None:
    """What follows `appliance serve` on the command line of a Python; None where it is another command."""
    if line and Path(line[0]).name.startswith("python"):
        for index, (word, command) in enumerate(pairwise(line)):
            if index and Path(word).name == "appliance" and command == "serve":
                return line[index + 2 :]
    return None


def _ask(server: ServerConfig, state: str, seconds: float) -> tuple[bool, str]:
    """Whether the server is in the state, and its answer.

    Raises:
        ProbeError: it cannot be asked.
    """
    connection = _connection(server, seconds)
    try:
        connection.request("GET", _PATHS[state])
        response = connection.getresponse()
        answer = _answer(state, response.status, response.read())
        return answer == state, answer
    except (OSError, http.client.HTTPException) as error:
        where = f"{connection.host} port {connection.port}"
        raise ProbeError(f"not {state}: {where} does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _connection(server: ServerConfig, seconds: float) -> http.client.HTTPConnection:
    host = _LOOPBACK.get(server.host, server.host)
    if server.probe_port is not None or server.tls is None:
        return http.client.HTTPConnection(host, server.probe_port or server.port, timeout=seconds)
    if server.tls.client_ca is not None:
        raise ProbeError(
            "server.tls.client_ca requires a certificate of every client of server.port, and a probe has none; "
            "set server.probe_port"
        )
    # The certificate is for the name that clients use; nothing secret is sent.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, server.port, timeout=seconds, context=context)


def _answer(state: str, status: int, body: bytes) -> str:
    """The state as the server gives it, and where it is another, a line for each model that is not ready."""
    try:
        answer: Any = json.loads(body)  # Any: JSON values
        if status == 200:
            return str(answer["status"])
        head = f"{answer['status']}: {answer['reason']}" if "reason" in answer else str(answer["status"])
        if not answer["models"]:
            head += "\nThe server's log has the reasons. Without a key, only server.probe_port tells them."
        others = [each for each in answer["models"] if each["state"] != "ready"]
        return "\n".join([head, *(f"{each['name']} is {each['state']}: {each['reason']}" for each in others)])
    except (ValueError, TypeError, KeyError):
        return f"not {state}: the answer has status {status} and is not from an appliance"
