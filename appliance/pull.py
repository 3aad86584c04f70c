"""
Materialize a config's models with progress bars, and nothing more.
"""

from __future__ import annotations

from rich.console import Console
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
from appliance.models.section import ModelSection, Report
from appliance.storage import verify


def pull(config: Config) -> None:
    """
    Bring every model's bytes, one model after the other, read them all again, and print where they lie.

    Serving looks at names and sizes alone, to start at once; here is the time for every byte.

    Raises:
        StorageError: the bytes of a model cannot be brought, or are not as they were stored.
    """
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    for section in config.models:
        with Progress(*columns, console=console, transient=True) as progress:
            artifacts = section.materialize(config.storage, _reporter(section, progress))
        for part, path in artifacts.items():
            verify(path)
            console.print(f"{section.name} {part}: {path}", soft_wrap=True, highlight=False)


def _reporter(section: ModelSection, progress: Progress) -> Report:
    bars: dict[str, TaskID] = {}

    def report(part: str, done: int, total: int | None) -> None:
        if part not in bars:
            bars[part] = progress.add_task(f"{section.name} {part}", total=total)
        progress.update(bars[part], completed=done, total=total)

    return report
