"""Bring a config's models with progress bars, and nothing more: pull them, lock them, or say what would be done."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from appliance.config import Config
from appliance.config.models import ModelConfig
from appliance.config.storage import StorageConfig
from appliance.models.factory import ModelFactory, OnProgress
from appliance.storage import lockfile, materialize, verify
from appliance.storage.dry_run import DryRun
from appliance.storage.dry_run import explain as explain_one
from appliance.storage.lockfile import LockEntry
from appliance.storage.materialize import verify_storage

# Where there is no terminal for bars, a line now and then says that it goes on.
_TELL_SECONDS = 5.0

_MOST_NAMED = 8


def pull(config: Config) -> None:
    """Bring every model's bytes, one model after the other, read them all again, and print where they lie.

    Serving looks at names and sizes alone, to start at once; here is the time for every byte.

    Raises:
        StorageError: the bytes of a model cannot be brought, or are not as they were stored, pinned or locked.
    """
    console = Console()
    for model_config in config.models:
        with _bars(model_config.name) as report:
            artifacts = ModelFactory().materialize(model_config, config.storage, report)
            found = {
                part: verify_storage(each, config.storage, partial(report, part))
                for part, each in _storages(model_config)
            }
            # What was made of them, such as a conversion.
            for part, path in artifacts.items():
                verify(path, partial(report, part))
        for part, path in artifacts.items():
            console.print(f"{model_config.name} {part}: {path}", soft_wrap=True, highlight=False)
            if part in found and (digest := found[part].digest):
                console.print(f"{model_config.name} {part} digest: sha256:{digest}", soft_wrap=True, highlight=False)


def lock(config: Config) -> None:
    """Bring every model's bytes as they are now, and write what they are into the lock.

    Raises:
        StorageError: the bytes of a model cannot be brought, or the lock cannot be written.
    """
    path = config.storage.lock_file
    if path is None:
        raise AssertionError("a config that was loaded has a place for its lock; this is a bug")
    settings = config.storage.model_copy(update={"lock_file": None, "frozen": False})
    entries = []
    for model_config in config.models:
        with _bars(model_config.name) as report:
            for part, storage in _storages(model_config):
                materialize(storage, settings, partial(report, part))
                entries.append(
                    LockEntry.of(storage, verify_storage(storage, settings, partial(report, part), read_all=True))
                )
    lockfile.write(path, entries)
    counts = f"{_some(len(entries), 'storage')}, {_some(sum(len(entry.files) for entry in entries), 'file')}"
    Console().print(f"{path}: {counts}", soft_wrap=True, highlight=False)


def explain(config: Config) -> None:
    """Say for every storage where its bytes would come from, as whom, and what is here already.

    Raises:
        StorageError: a store does not answer, or has nothing that may be loaded.
    """
    console = Console()
    for model_config in config.models:
        for part, storage in _storages(model_config):
            console.print(f"{model_config.name} {part}", highlight=False)
            for word, value in _lines(explain_one(storage, config.storage)):
                console.print(f"  {word:<11}{value}", soft_wrap=True, highlight=False, markup=False)


def _storages(model_config: ModelConfig) -> Collection[tuple[str, StorageConfig]]:
    return model_config.storages.items()


def _lines(explanation: DryRun) -> Iterator[tuple[str, str]]:
    yield "uri", explanation.uri
    yield "place", explanation.source
    yield "credential", explanation.credential
    if explanation.revision:
        yield "revision", explanation.revision
    if explanation.files is not None and explanation.size is not None:
        yield "files", f"{_some(explanation.files, 'file')} with {decimal(explanation.size)}"
    for reason in sorted(set(explanation.left_out.values())):
        names = [name for name, why in explanation.left_out.items() if why == reason]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        yield "left out", f"{', '.join(names[:_MOST_NAMED])}{more}: {reason}"
    yield "here", str(explanation.path or "no")


def _some(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


@contextmanager
def _bars(name: str) -> Iterator[OnProgress]:
    """Draws a bar for each part on a terminal, and elsewhere prints a line now and then, to standard error."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars: dict[str, TaskID] = {}
    told = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def report(part: str, done: int, total: int | None) -> None:
            nonlocal told
            if part not in bars:
                bars[part] = progress.add_task(f"{name} {part}", total=total)
            # Work without a number of its own, such as reading again, leaves the bar as it is.
            if (done, total) != (0, None):
                progress.update(bars[part], completed=done, total=total)
            if not console.is_terminal and time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                speed = progress.tasks[bars[part]].speed or 0
                of = f" of {decimal(total)}" if total else ""
                console.print(f"{name} {part}: {decimal(done)}{of}, {decimal(round(speed))}/s", highlight=False)

        yield report
