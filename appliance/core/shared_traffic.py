"""Interactive requests of each model, counted by several workers in memory that they share."""

from __future__ import annotations

import mmap
import zlib
from typing import NamedTuple

# Models whose names have the same hash share their counts, which makes pauses longer.
_MODELS = 1024

# Of a model in a worker: all requests so far, those that are running, and when the last one came.
_ARRIVALS, _RUNNING, _LAST, _FIELDS = range(4)

_BYTES = 8


class Traffic(NamedTuple):
    """Interactive requests of a model: all so far, those that are running, and when the last one came."""

    arrivals: int = 0
    running: int = 0
    last: float = 0.0


class SharedTraffic:
    """The counts of all workers, in memory that forked processes share; each worker writes its own."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        memory = memoryview(mmap.mmap(-1, workers * _MODELS * _FIELDS * _BYTES))
        self._counts, self._times = memory.cast("q"), memory.cast("d")

    def clear(self, worker: int) -> None:
        """Forget what runs in a worker that died."""
        for model in range(_MODELS):
            self._counts[self._offset(worker, model) + _RUNNING] = 0

    def of_model(self, name: str, worker: int) -> ModelTraffic:
        """Return the counts of a model, for a worker."""
        model = zlib.crc32(name.encode()) % _MODELS
        offsets = [self._offset(each, model) for each in range(self._workers)]
        own = offsets.pop(worker)
        return ModelTraffic(self._counts, self._times, own, offsets)

    @staticmethod
    def _offset(worker: int, model: int) -> int:
        return (worker * _MODELS + model) * _FIELDS


class ModelTraffic:
    """The counts of one model: those of this worker to write, and the others' to read."""

    def __init__(self, counts: memoryview[int], times: memoryview[float], own: int, others: list[int]) -> None:
        self._counts, self._times, self._own, self._others = counts, times, own, others

    def arrive(self, now: float) -> None:
        """Count a request; `now` is on the clock that all processes of a machine share."""
        self._times[self._own + _LAST] = now
        self._counts[self._own + _ARRIVALS] += 1

    def add_running(self, number: int) -> None:
        """Count requests that begin, or if negative, end."""
        self._counts[self._own + _RUNNING] += number

    def others(self) -> Traffic:
        """Return the counts of all other workers together."""
        return Traffic(
            sum(self._counts[each + _ARRIVALS] for each in self._others),
            sum(self._counts[each + _RUNNING] for each in self._others),
            max(self._times[each + _LAST] for each in self._others),
        )
