"""The command `smoke`: serves a config, sends the requests of its `expect`, and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import click

from appliance.cli.expectations import ExpectationError, check_body, read_reference
from appliance.cli.options import FILE, default_file, load_quietly, overrides
from appliance.config import Config
from appliance.config.root import ExpectConfig
from appliance.config.server import new_key
from appliance.config.yaml_parser import STANDARD_INPUT
from appliance.core.errors import ApplianceError

_POLL_SECONDS = 0.25
_ANSWER_SECONDS = 300.0
_LINES_OF_LOG = 25


class SmokeError(ApplianceError):
    """The server did not do what the config expects."""


@click.command()
@click.argument("files", type=FILE, nargs=-1, metavar="[FILE]...")
@click.option("--timeout", type=float, default=1800, show_default=True, help="Seconds each FILE may take to be ready.")
@overrides
def smoke(files: Sequence[Path], timeout: float, overrides: Sequence[str]) -> None:
    """Serve each FILE, check its `expect:`, and stop it.

    Exit code 0 when every check passed.
    """
    if STANDARD_INPUT in files:
        raise click.UsageError("- cannot be smoked, because the server reads its file itself; name a FILE")
    for file in files or [default_file()]:
        config = load_quietly(file, overrides).config
        click.echo(f"{file}")
        for expectation in config.expect:
            if expectation.cosine is not None:
                # A fault of the file is known before the server has loaded its models.
                read_reference(expectation.cosine, file.parent)
        asyncio.run(_serve_and_check(file, config, overrides, timeout))
        click.echo("  every check passed" if config.expect else "  it was ready; there is no `expect:` to check")


async def _serve_and_check(file: Path, config: Config, overrides: Sequence[str], seconds: float) -> None:
    """Serve `file` in a child process on a free port, and compare its answers with `expect`.

    It must be ready within `seconds`.

    Raises:
        SmokeError: it did not get ready, a response was not as expected, or it did not stop cleanly.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key, digest = new_key()
    changes = [*overrides, f"server.port={port}", "server.host=127.0.0.1", "logging.format=json", "server.tls=null"]
    if config.server.api_keys:
        # One key replaces all, because the file may have only the digests of its keys.
        changes.append(f"server.api_keys={json.dumps([{'name': 'smoke', 'sha256': digest, 'admin': True}])}")
    command = [sys.executable, "-m", "appliance", "serve", str(file)]
    command += [word for change in changes for word in ("--set", change)]
    with tempfile.TemporaryFile() as output:
        server = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
        try:
            headers = {"Authorization": f"Bearer {key}"}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session:
                await _until_ready(session, server, seconds)
                for expectation in config.expect:
                    await _check(session, expectation, file.parent)
            await _stop(server, config.server.drain_seconds)
        except SmokeError as error:
            output.seek(0)
            log = output.read().decode(errors="replace").splitlines()[-_LINES_OF_LOG:]
            raise SmokeError("\n".join([f"{error}\nthe end of its log:", *log])) from error
        finally:
            if server.returncode is None:
                server.kill()
                await server.wait()


async def _until_ready(session: aiohttp.ClientSession, server: asyncio.subprocess.Process, seconds: float) -> None:
    started = time.monotonic()
    logged: set[str] = set()
    while time.monotonic() - started < seconds:
        if server.returncode is not None:
            raise SmokeError(f"the server ended with exit code {server.returncode}")
        status, models = 0, []
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get("/readyz", timeout=aiohttp.ClientTimeout(total=10)) as response:
                status, models = response.status, (await response.json())["models"]
        for line in (f"{model['name']} is {model['state']}: {model['reason']}" for model in models):
            if line not in logged:
                logged.add(line)
                click.echo(f"  {time.monotonic() - started:6.1f} s  {line}")
        if status == 200:
            return
        failed = [model["reason"] for model in models if model["state"] == "failed"]
        if failed:
            raise SmokeError(f"a model failed: {failed[0]}")
        await asyncio.sleep(_POLL_SECONDS)
    raise SmokeError(f"it was not ready within {seconds:.0f} seconds; allow more with --timeout")


async def _check(session: aiohttp.ClientSession, expectation: ExpectConfig, directory: Path) -> None:
    method = "GET" if expectation.body is None else "POST"
    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    try:
        async with session.request(method, expectation.path, json=expectation.body, timeout=timeout) as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise SmokeError(f"{method} {expectation.path} got no answer: {type(error).__name__} {error}") from error
    if response.status != expectation.status:
        raise SmokeError(f"{method} {expectation.path} answered {response.status}, not {expectation.status}: {text}")
    try:
        found = check_body(expectation, text, directory)
    except ExpectationError as error:
        raise SmokeError(f"{method} {expectation.path} {error}") from error
    click.echo(f"  {method} {expectation.path} answered {response.status}{found}")


async def _stop(server: asyncio.subprocess.Process, drain_seconds: float) -> None:
    # SIGINT, unlike SIGTERM, does not wait for load balancers.
    server.send_signal(signal.SIGINT)
    try:
        code = await asyncio.wait_for(server.wait(), drain_seconds + 15)
    except TimeoutError as error:
        raise SmokeError("it did not stop after SIGINT") from error
    if code != 0:
        raise SmokeError(f"it stopped with exit code {code}, not 0")
