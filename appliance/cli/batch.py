"""The command `batch`: answers a file of requests by the models of a config, or by a running server."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.options import FILE, default_file, load_quietly, offline, overrides, to_overrides
from appliance.cli.remote import api_key_option
from appliance.config import LoadedConfig
from appliance.core.errors import ApplianceError
from appliance.core.status_line import status_line

if TYPE_CHECKING:
    from appliance.batches.lines import LineResult
    from appliance.batches.offline import OfflineBatch, Progress, Results
    from appliance.cli.remote_batch import RemoteBatch
    from appliance.models.manager import ModelManager

_STANDARD = Path("-")
_BAR_WIDTH = 20


class BatchFileError(ApplianceError):
    """A file of requests or results cannot be used."""

    exit_code = 2


@click.command()
@click.argument("file", type=FILE, metavar="FILE.jsonl")
@click.option("--config", "config_file", type=FILE, help="The config; by default the one that `serve` takes.")
@click.option("--url", help="The URL of a running server that answers, instead of the models of a config.")
@api_key_option
@click.option("-o", "--output", type=FILE, default=_STANDARD, help="The file of results; by default they are printed.")
@click.option("--concurrent", type=click.IntRange(1), help="Requests at once; by default what the models compute.")
@offline
@overrides
def batch(
    file: Path,
    config_file: Path | None,
    url: str | None,
    api_key: str | None,
    output: Path,
    concurrent: int | None,
    offline: bool,
    overrides: Sequence[str],
) -> None:
    """Answer a file of requests without a server, or by a running one.

    FILE.jsonl has one request in a line, in the format of OpenAI's batches; it may be - for standard input. The models
    of the config are started, and stopped at the end; with --url, a running server answers. Requests that have a result
    in the file of --output are not run again, so an interrupted run continues. The exit code is 1 if any request
    failed; its result says why.
    """
    if url is not None and (config_file or overrides or offline):
        raise click.UsageError("--url needs no config; leave out --config, --set and --offline")
    words = to_overrides(overrides, offline=offline)
    loaded = load_quietly(config_file or default_file(), words) if url is None else None
    from appliance.core.system import exit_now

    try:
        _require_output(output, file)
        with _input(file) as path, _results(output) as results:
            work = _offline(loaded, concurrent) if loaded else _remote(str(url), api_key, concurrent)
            failed = _run(work, path, str(file), results)
    except KeyboardInterrupt:
        remedy = "" if output == _STANDARD else "; the same command goes on where it stopped"
        click.echo(f"interrupted{remedy}", err=True)
        exit_now(130)
    except ApplianceError as error:
        click.echo(f"appliance: {error}", err=True)
        exit_now(error.exit_code)
    exit_now(1 if failed else 0)


def _offline(loaded: LoadedConfig, concurrent: int | None) -> OfflineBatch:
    # Seconds of imports.
    from appliance.api.error_responses import status_and_body
    from appliance.batches.offline import OfflineBatch
    from appliance.models.factory import ModelFactory
    from appliance.responses.service import Responses

    # Without a server nothing is stored.
    return OfflineBatch(
        loaded.config, ModelFactory(), status_and_body, lambda *parts: Responses(*parts).handle, concurrent
    )


def _remote(url: str, api_key: str | None, concurrent: int | None) -> RemoteBatch:
    from appliance.cli.remote_batch import RemoteBatch

    return RemoteBatch(url, api_key, concurrent)


def _run(work: OfflineBatch | RemoteBatch, path: Path, name: str, results: Results) -> int:
    """Return how many requests failed."""
    import uvloop

    display = _Display()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(work.run(path, name, results, display.show))
        finally:
            display.close()
    progress = work.progress
    click.echo(f"{progress.done} of {progress.total} requests have results, {progress.failed} failed", err=True)
    return progress.failed


class _Display:
    """The last line of a terminal; elsewhere it shows nothing."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None

    def show(self, progress: Progress, manager: ModelManager | None = None) -> None:
        if (line := status_line()) is None:
            return
        from appliance.server.terminal import starting

        if manager is not None and not manager.is_ready:
            line.show(" | ".join(starting(status) for status in manager.statuses if not status.rule.is_ready))
            return
        began, before = self._began = self._began or (time.monotonic(), progress.done)
        rate = (progress.done - before) / max(time.monotonic() - began, 0.001)
        filled = _BAR_WIDTH * progress.done // max(progress.total, 1)
        left = f", {(progress.total - progress.done) / rate:.0f} s left" if rate else ""
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        failed = f", {progress.failed} failed" if progress.failed else ""
        line.show(f"{bar} {progress.done} of {progress.total}, {rate:.1f}/s{failed}{left}")

    def close(self) -> None:
        if (line := status_line()) is not None:
            line.show("")


@contextmanager
def _input(file: Path) -> Iterator[Path]:
    """Provide the path of the requests; a pipe is read to its end, because they are checked before one is run.

    Raises:
        BatchFileError: the file cannot be read.
    """
    is_copied = file == _STANDARD or not file.is_file()
    with tempfile.NamedTemporaryFile() as copy:
        try:
            with nullcontext(sys.stdin.buffer) if file == _STANDARD else file.open("rb") as source:
                if is_copied:
                    shutil.copyfileobj(source, copy)
        except FileNotFoundError as error:
            raise BatchFileError(f"{file}: there is no such file of requests") from error
        except OSError as error:
            raise BatchFileError(f"{file} cannot be read: {error.strerror}; name a file of requests") from error
        copy.flush()
        yield Path(copy.name) if is_copied else file


def _require_output(output: Path, file: Path) -> None:
    """Refuse to write results to a device, or to the file of the requests, by whatever names or redirections."""
    if output != _STANDARD and output.exists() and not output.is_file():
        raise BatchFileError(f"{output} is no regular file; name another --output, or - for standard output")
    try:
        source = os.fstat(0) if file == _STANDARD else file.stat()
        target = os.fstat(1) if output == _STANDARD else output.stat()
    except OSError:
        return
    if stat.S_ISREG(source.st_mode) and os.path.samestat(source, target):
        raise BatchFileError(f"the results would go to the file of the requests, {file}; name another --output")


class _Printed:
    """Results on standard output."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.failed = 0

    def append(self, result: LineResult) -> None:
        sys.stdout.buffer.write(result.encode())
        sys.stdout.buffer.flush()
        self.done.add(result.custom_id)
        self.failed += not result.is_success


@contextmanager
def _results(output: Path) -> Iterator[Results]:
    """Provide where results go.

    Raises:
        BatchFileError: the file cannot be written, or has something else.
    """
    if output == _STANDARD:
        yield _Printed()
        return
    from appliance.batches.lines import Journal

    try:
        if (line := Journal.foreign_line(output)) is not None:
            raise BatchFileError(
                f"{output}:{line}: this is no result of a batch; remove the line, or name another --output"
            )
        journal = Journal(output)
    except OSError as error:
        raise BatchFileError(f"{output} cannot be written: {error.strerror}; name another --output") from error
    try:
        yield journal
    finally:
        journal.close()
