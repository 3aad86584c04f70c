"""Bytes on their way to a model: told of as they come, and held once they are here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from appliance.config.models import ModelConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ApplianceError, LoadError
from appliance.core.file_lock import FileLock
from appliance.models.factory import ModelFactory, OnProgress
from appliance.models.fetch_progress import FetchProgress
from appliance.planner import Plan
from appliance.storage.cache import hold
from appliance.storage.manifest import artifact_of

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Often enough to see that a long fetch goes on, seldom enough to read the rest.
_TELL_SECONDS = 5.0


class _StoppedError(Exception):
    """Ends the thread that materializes: nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class FetchedArtifacts:
    """What a section's storages became; `digests` has those that came from a store, `plan` says what they come to.

    As long as `holds` are open, nobody prunes the bytes.
    """

    artifacts: Mapping[str, Path]
    digests: Mapping[str, str]
    holds: Sequence[FileLock]
    plan: Plan | None


def fetch_artifacts(
    factory: ModelFactory, config: ModelConfig, settings: GlobalStorageConfig, report: OnProgress
) -> FetchedArtifacts:
    """Materialize all storages of a section; blocks.

    Raises:
        LoadError: the model cannot be laid out as the config asks; nothing is fetched then.
        StorageError: the bytes cannot be brought.
    """
    _require_possible(factory, config, settings)
    artifacts = factory.materialize(config, settings, report)
    found = {part: artifact_of(path) for part, path in artifacts.items()}
    return FetchedArtifacts(
        artifacts=artifacts,
        digests={part: each[1].digest for part, each in found.items() if each is not None},
        holds=list(filter(None, map(hold, artifacts.values()))),
        plan=_planned(factory, config, artifacts),
    )


def _planned(factory: ModelFactory, config: ModelConfig, artifacts: Mapping[str, Path]) -> Plan | None:
    """The plan of what is here. It only tells: one that cannot be made keeps no model from its load."""
    try:
        return factory.plan(config, artifacts)
    except Exception as error:
        log.info("model.unplanned", model=config.name, reason=f"{type(error).__name__}: {error}")
        return None


def _require_possible(factory: ModelFactory, config: ModelConfig, settings: GlobalStorageConfig) -> None:
    """Return when nothing is known that speaks against the layout; a store that cannot say now is no reason to stop."""
    try:
        refusals = factory.precheck(config, settings)
    except ApplianceError as error:
        log.info("layout.unforeseen", model=config.name, reason=str(error))
        return
    if refusals:
        raise LoadError("; ".join(f"{'.'.join(each.path)} {each.message}" for each in refusals))


def reporter(name: str, progress: FetchProgress, has_stopped: Callable[[], bool]) -> OnProgress:
    """Notes the progress of the named model, tells of it now and then, and stops it once nobody waits for it."""
    told = time.monotonic()

    def report(part: str, fetched: int, total: int | None) -> None:
        if has_stopped():
            raise _StoppedError
        nonlocal told
        progress.hear(part, fetched, total)
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            log.info("artifact.fetching", model=name, **progress.describe())

    return report
