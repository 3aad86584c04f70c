"""The command `lock`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from appliance.cli.options import FILE, load_quietly, overrides
from appliance.cli.pull import counted, progress_bars
from appliance.config import Config
from appliance.storage import lockfile, materialize
from appliance.storage.lockfile import LockEntry
from appliance.storage.materialize import verify_storage


@click.command()
@click.argument("file", type=FILE)
@overrides
def lock(file: Path, overrides: Sequence[str]) -> None:
    """Write appliance.lock beside FILE: every file of its models as it is now, with size and SHA-256.

    The models are downloaded for it. Commit the lock: serve and pull then refuse any other files, and a branch of the
    hub stays at the commit that is locked.
    """
    write_lock(load_quietly(file, overrides).config)


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
        with progress_bars(model.name) as on_progress:
            for part, storage in model.storages.items():
                materialize(storage, settings, partial(on_progress, part))
                files = verify_storage(storage, settings, partial(on_progress, part), read_all=True)
                entries.append(LockEntry.of(storage, files))
    lockfile.write(path, entries)
    counts = f"{counted(len(entries), 'storage')}, {counted(sum(len(entry.files) for entry in entries), 'file')}"
    Console().print(f"{path}: {counts}", soft_wrap=True, highlight=False)
