"""The download of a model's files: its progress, and the local files that it results in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from appliance.config.models import ModelConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ApplianceError, LoadError
from appliance.core.file_lock import FileLock
from appliance.core.status_line import status_line
from appliance.models.factory import ModelFactory, OnPartProgress
from appliance.planner.planner import Plan
from appliance.planner.predictor_plan import PredictorPlan
from appliance.storage.cache import hold
from appliance.storage.manifest import artifact_of

log: structlog.stdlib.BoundLogger = structlog.get_logger()

CONVERSION = "conversion"
"""The part of a fetch that is no download: a GGUF file becomes safetensors."""

# Often enough to show that a long download goes on, seldom enough to keep the log readable.
_LOG_INTERVAL_SECONDS = 5.0

# The rate is an average over this time: it shows a stall, but not a pause of a second.
_RATE_WINDOW_SECONDS = 15.0


class _AbandonedError(Exception):
    """Ends the thread of a download that is not needed any more."""


class FetchProgress:
    """Bytes and rate of a download over all its parts.

    Updated in the downloading thread and read in others, so each value is replaced as a whole.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.part = ""
        self._clock = clock
        self._part_began = clock()
        # Of each storage: bytes that were there before, all fetched bytes, and the total, None while it is unknown.
        self._parts: Mapping[str, tuple[int, int, int | None]] = {}
        self._samples = deque([(clock(), 0)])
        self._retry_at = 0.0

    def update(self, part: str, fetched: int, total: int | None) -> None:
        """Note the bytes of one part; those of its first update were there before."""
        earlier, before, before_total = self._parts.get(part, (fetched, 0, None))
        is_first = before == 0 and before_total is None
        self._parts = {**self._parts, part: (fetched if is_first else min(earlier, fetched), fetched, total)}
        now = self._clock()
        if part != self.part:
            self.part, self._part_began = part, now
        self._samples.append((now, sum(fetched - earlier for earlier, fetched, _ in self._parts.values())))
        while len(self._samples) > 2 and self._samples[1][0] < now - _RATE_WINDOW_SECONDS:
            self._samples.popleft()

    def wait(self, seconds: float) -> None:
        """Note that a request waits for so long, as for the end of the store's rate limit."""
        self._retry_at = max(self._retry_at, self._clock() + seconds)

    @property
    def fetched(self) -> int:
        """Bytes that are here."""
        return sum(fetched for _, fetched, _ in self._parts.values())

    @property
    def total(self) -> int | None:
        """Bytes of all parts that have begun; None while one of them is unknown."""
        sizes = [total for _, _, total in self._parts.values() if total is not None]
        return sum(sizes) if sizes and len(sizes) == len(self._parts) else None

    @property
    def part_seconds(self) -> float:
        """Seconds since the current part began."""
        return self._clock() - self._part_began

    @property
    def rate(self) -> float:
        """Bytes per second, averaged over a few seconds."""
        (began, before), (_, now) = self._samples[0], self._samples[-1]
        return max(0, now - before) / max(self._clock() - began, 0.001)

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """Return bytes, rate and remaining seconds, as probes show them; and those until the store is asked again."""
        rate, total, wait = self.rate, self.total, self._retry_at - self._clock()
        return {
            "part": self.part,
            "fetched_bytes": self.fetched,
            "total_bytes": total,
            "bytes_per_second": round(rate),
            "eta_seconds": None if total is None or rate < 1 else round((total - self.fetched) / rate, 1),
            "retry_in_seconds": round(wait, 1) if wait > 0 else None,
        }

    def reporter(self, name: str, is_abandoned: Callable[[], bool]) -> OnPartProgress:
        """Return a callback that updates this and logs it now and then; it raises once the download is abandoned."""
        logged = time.monotonic()

        def on_progress(part: str, fetched: int, total: int | None) -> None:
            nonlocal logged
            if is_abandoned():
                raise _AbandonedError
            self.update(part, fetched, total)
            # A terminal has a bar.
            if time.monotonic() - logged > _LOG_INTERVAL_SECONDS and status_line() is None:
                logged = time.monotonic()
                if part == CONVERSION:
                    log.info("artifact.conversion_progress", model=name, seconds=round(self.part_seconds, 1))
                else:
                    log.info("artifact.fetch_progress", model=name, **self.describe())

        return on_progress


@dataclass(frozen=True, slots=True)
class FetchedArtifacts:
    """The local files of a model's storages; they are not pruned until `close`."""

    paths: Mapping[str, Path] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    """Only of storages whose files came from a store."""
    locks: Sequence[FileLock] = ()
    plan: Plan | PredictorPlan | None = None
    """What the files take on this machine, if it is known."""

    def close(self) -> None:
        """Allow the files to be pruned."""
        for lock in self.locks:
            lock.close()


def fetch_artifacts(
    factory: ModelFactory, config: ModelConfig, storage: GlobalStorageConfig, on_progress: OnPartProgress
) -> FetchedArtifacts:
    """Download the files of all storages of a model; blocks.

    Raises:
        LoadError: the config's layout is impossible for the model; then nothing is downloaded.
        ArtifactCorruptError: the files are not all of a model.
        StorageError: the download failed.
    """
    try:
        violations = factory.precheck(config, storage)
    except ApplianceError as error:
        # A store that cannot be read now does not keep the download from trying, which tells what is wrong.
        log.debug("layout.precheck_failed", model=config.name, reason=str(error))
    else:
        if violations:
            raise LoadError("; ".join(f"{'.'.join(each.path)} {each.message}" for each in violations))
    paths = factory.materialize(config, storage, on_progress)
    factory.require_complete(config, paths)
    artifacts = {part: artifact_of(path) for part, path in paths.items()}
    locks = list(filter(None, map(hold, paths.values())))
    digests = {part: digest for part, found in artifacts.items() if found and (digest := found[1].digest)}
    plan = None
    try:
        plan = factory.plan(config, paths)
    except Exception as error:
        # The plan is information only: a failure to make one does not keep the model from loading.
        log.info("model.plan_failed", model=config.name, reason=f"{type(error).__name__}: {error}")
    return FetchedArtifacts(paths, digests, locks, plan)
