"""The commands `pull` and `lock`, which download models."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

from appliance.cli.options import file_argument, frozen, load_quietly, offline, overrides, to_overrides
from appliance.config import Config
from appliance.models.factory import ModelFactory, OnPartProgress
from appliance.storage import lockfile, materialize, verify
from appliance.storage.dry_run import DryRun
from appliance.storage.dry_run import explain as explain_storage
from appliance.storage.lockfile import LockEntry
from appliance.storage.materialize import verify_storage

# Interval of the lines about progress where standard error is not a terminal.
_PROGRESS_SECONDS = 5.0

_MAX_NAMES = 8


@contextmanager
def _until_sigterm() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, which releases the locks; the first process of a container would ignore it."""
    is_ended = False

    def end(_number: int, frame: FrameType | None) -> None:
        nonlocal is_ended
        is_ended = True
        # That of an event loop which runs; a job in the background of a shell ignores SIGINT.
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if is_ended:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@file_argument
@click.option("--explain", is_flag=True, help="Download nothing; print sources, credentials, files and what is here.")
@offline
@frozen
@overrides
@_until_sigterm()
def pull(file: Path | None, explain: bool, offline: bool, frozen: bool, overrides: Sequence[str]) -> None:
    """Download FILE's models and stop.

    Serving them later starts at once. Every byte is read again at the end. Where there is an appliance.lock beside
    FILE, the files must match it.
    """
    config = load_quietly(file, to_overrides(overrides, offline=offline, frozen=frozen)).config
    (explain_models if explain else pull_models)(config)


@click.command()
@file_argument
@overrides
@_until_sigterm()
def lock(file: Path | None, overrides: Sequence[str]) -> None:
    """Write the files of FILE's models into appliance.lock.

    It is beside FILE, and has every file as it is now, with size and SHA-256. The models are downloaded for it. Commit
    the lock: serve and pull then refuse any other files, and a branch of the hub stays at the commit that is locked.
    """
    write_lock(load_quietly(file, overrides).config)


def pull_models(config: Config) -> None:
    """Download the models one after the other, read all their bytes again, and print their paths.

    Serving compares names and sizes alone, to start at once.

    Raises:
        StorageError: a model cannot be downloaded, or is damaged, or differs from its digest or lock.
    """
    console = Console()
    for model in config.models:
        with _progress_bars(model.name) as on_progress:
            factory = ModelFactory()
            paths = factory.materialize(model, config.storage, on_progress)
            files = {
                part: verify_storage(storage, config.storage, partial(on_progress, part))
                for part, storage in model.storages.items()
            }
            # Converted files are no storage of their own.
            for part, path in paths.items():
                verify(path, partial(on_progress, part))
        factory.require_complete(model, paths)
        for part, path in paths.items():
            console.print(f"{model.name} {part}: {path}", soft_wrap=True, highlight=False)
            if part in files and (digest := files[part].digest):
                console.print(f"{model.name} {part} digest: sha256:{digest}", soft_wrap=True, highlight=False)


def explain_models(config: Config) -> None:
    """Print for every storage its source, the credentials, the files, and what is in the cache.

    Raises:
        StorageError: a store does not answer, or has nothing that may be loaded.
    """
    console = Console()
    for model in config.models:
        for part, storage in model.storages.items():
            console.print(f"{model.name} {part}", highlight=False)
            for word, value in _lines(explain_storage(storage, config.storage)):
                console.print(f"  {word:<11}{value}", soft_wrap=True, highlight=False, markup=False)


def write_lock(config: Config) -> None:
    """Download every model as it is now, and write its files into the lock.

    Raises:
        StorageError: a model cannot be downloaded, or the lock cannot be written.
    """
    path = config.storage.lock_file
    if path is None:
        raise AssertionError("a config that was loaded has a lock file; this is a bug")
    settings = config.storage.model_copy(update={"lock_file": None, "frozen": False})
    entries = []
    for model in config.models:
        with _progress_bars(model.name) as on_progress:
            for part, storage in model.storages.items():
                materialize(storage, settings, partial(on_progress, part))
                files = verify_storage(storage, settings, partial(on_progress, part), read_all=True)
                entries.append(LockEntry.of(storage, files))
    lockfile.write(path, entries)
    counts = (
        f"{_counted(len(entries), 'storage')}, {_counted(sum(len(entry.found.files) for entry in entries), 'file')}"
    )
    Console().print(f"{path}: {counts}", soft_wrap=True, highlight=False)


def _lines(explanation: DryRun) -> Iterator[tuple[str, str]]:
    yield "uri", explanation.uri
    yield "source", explanation.source
    yield "credential", explanation.credential
    if explanation.revision:
        yield "revision", explanation.revision
    if explanation.files is not None and explanation.size is not None:
        yield "files", f"{_counted(explanation.files, 'file')} with {decimal(explanation.size)}"
    for reason in sorted(set(explanation.left_out.values())):
        names = [name for name, why in explanation.left_out.items() if why == reason]
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        yield "left out", f"{', '.join(names[:_MAX_NAMES])}{more}: {reason}"
    yield "here", str(explanation.path or "no")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


@contextmanager
def _progress_bars(name: str) -> Iterator[OnPartProgress]:
    """Show progress on standard error: a bar for each part on a terminal, else a line every five seconds."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    last_line = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def on_progress(part: str, done: int, total: int | None) -> None:
            nonlocal last_line
            if part not in bars:
                bars[part] = progress.add_task(f"{name} {part}", total=total)
            # Work that counts no bytes, such as reading again, leaves the bar as it is.
            if (done, total) != (0, None):
                progress.update(bars[part], completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last_line > _PROGRESS_SECONDS:
                last_line = time.monotonic()
                speed = progress.tasks[bars[part]].speed or 0
                of = f" of {decimal(total)}" if total else ""
                console.print(f"{name} {part}: {decimal(done)}{of}, {decimal(round(speed))}/s", highlight=False)

        yield on_progress
