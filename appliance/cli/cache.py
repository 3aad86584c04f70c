"""The command `cache`: lists, verifies and prunes downloaded models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click
from rich.filesize import decimal

from appliance.cli.options import load_config
from appliance.config import Config
from appliance.core.errors import ArtifactCorruptError
from appliance.storage import Cache, sha256_in_cache
from appliance.storage.cache_admin import damaged_files, list_artifacts, remove, select_prunable
from appliance.storage.resolution import resolve

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class _Quantity(click.ParamType):  # type: ignore[type-arg] # click's stubs and click differ
    """A number with one of some units, in the smallest of them."""

    def __init__(self, name: str, units: Mapping[str, int], examples: str) -> None:
        self.name = name
        self._units = units
        self._examples = examples

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).lower())
        if found is None or found[2] not in self._units:
            self.fail(f"{value!r} is not a {self.name}; write one such as {self._examples}", param, ctx)
        return float(found[1]) * self._units[found[2]]


_AGE = _Quantity("duration", _UNITS, "12h, 30d or 2w")
_SIZE = _Quantity("size", _SIZES | {f"{unit}b": size for unit, size in _SIZES.items()}, "500M, 50GB or 1TiB")


@click.group()
def cache() -> None:
    """List, verify and prune downloaded models.

    Without --dir it is the user's own cache: `appliance` under the cache home.
    """


_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    envvar="APPLIANCE__STORAGE__CACHE_DIR",
    show_envvar=True,
    help="Directory of the cache, as in storage.cache_dir.",
)


@cache.command("list")
@_directory
def list_(directory: Path | None) -> None:
    """Print each artifact and its source, last used first."""
    from rich.console import Console
    from rich.table import Table

    root = Cache.at(directory)
    found = list_artifacts(root)
    table = Table("size", "files", "used", "from", "in", box=None, pad_edge=False, highlight=False)
    for each in found:
        table.add_row(decimal(each.size), str(each.files), f"{_ago(each.age)} ago", each.uri, each.path.name)
    console = Console(width=None if Console().is_terminal else 240)
    if found:
        console.print(table)
    console.print(f"{root.root}: {len(found)} artifacts, {decimal(_on_disk(root.root))} on the disk", highlight=False)


@cache.command()
@_directory
@click.option(
    "--remove", "is_removing", is_flag=True, help="Remove damaged artifacts; they are downloaded again when needed."
)
def verify(directory: Path | None, is_removing: bool) -> None:
    """Read every byte, and name missing and damaged files.

    Exit code 16 when there is one.
    """
    root, broken = Cache.at(directory), 0
    for artifact in (artifact for artifact in list_artifacts(root) if artifact.is_finished):
        names = damaged_files(artifact)
        click.echo(f"{artifact.path.name}: {'damaged: ' + ', '.join(names) if names else 'good'}")
        broken += bool(names)
        if names and is_removing and not remove(root, artifact):
            click.echo(f"{artifact.path.name}: in use, and not removed", err=True)
    if is_removing:
        root.blobs.remove_unused()
    elif broken:
        raise ArtifactCorruptError(f"{broken} damaged; remove them with --remove, to download them again")


@cache.command()
@_directory
@click.option(
    "--older-than", "age", type=_AGE, metavar="AGE", help="Remove artifacts not used for this long, such as 30d."
)
@click.option(
    "--max-size",
    "size",
    type=_SIZE,
    help="Remove the least recently used, until at most this much is left, such as 50GB.",
)
@click.option(
    "--keep",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Keep the artifacts that this config uses; without other limits, remove all others.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def prune(directory: Path | None, age: float | None, size: float | None, files: Sequence[Path], dry_run: bool) -> None:
    """Remove artifacts that are no longer needed.

    Without options only the remains of killed and failed downloads are removed. Artifacts in use are never removed.
    """
    configs = [load_config(file).config for file in files]
    root = Cache.at(directory or next((config.storage.cache_dir for config in configs), None))
    is_rest = bool(files) and age is None and size is None
    max_age, max_size = 0 if is_rest else age, size if size is None else int(size)
    freed = 0
    for artifact in select_prunable(list_artifacts(root), max_age, max_size, set(_named(root, configs))):
        is_gone = dry_run or remove(root, artifact)
        freed += artifact.size if is_gone else 0
        word = ("would be removed" if dry_run else "removed") if is_gone else "in use, and not removed"
        click.echo(f"{artifact.path.name}: {decimal(artifact.size)}, used {_ago(artifact.age)} ago: {word}")
    if not dry_run:
        root.blobs.remove_unused()
    click.echo(f"{decimal(freed)} {'would be ' if dry_run else ''}removed")


def _named(root: Cache, configs: Iterable[Config]) -> Iterable[Path]:
    """The artifacts that the configs use, and those converted from them."""
    for config in configs:
        settings = config.storage.model_copy(update={"cache_dir": root.root, "frozen": False})
        for storage in (storage for model in config.models for storage in model.storages.values()):
            path = resolve(storage, settings).cached_path()
            if path is None:
                continue
            yield root.root / path.relative_to(root.root).parts[0]
            if known := sha256_in_cache(path) if path.is_file() else None:
                yield from (each.path for each in list_artifacts(root) if each.source and known in each.source)


def _on_disk(root: Path) -> int:
    """Bytes of all files; one with several hard links counts once."""
    stats = (path.lstat() for path in root.rglob("*") if path.is_file())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())


def _ago(seconds: float) -> str:
    unit = next((unit for unit in "wdhm" if seconds >= _UNITS[unit]), "s")
    return f"{int(seconds / _UNITS[unit])}{unit}"
