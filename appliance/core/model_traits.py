"""
What some models promise beyond the contract, and others have nothing of: bounds, measures, and whom they depend on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class LimitsConcurrency(Protocol):
    """A model whose engine computes only so many calls at once, and lets the others wait."""

    @property
    def concurrent(self) -> int | None:
        """How many that is; None before it is loaded, and where nobody knows."""


@runtime_checkable
class Preparable(Protocol):
    """A model whose load has work that needs none of its bytes."""

    def prepare(self, cache_dir: Path | None) -> None:
        """
        Begin that work in the background, before or while the bytes are brought; returns at once, in the main thread.

        `cache_dir` is where the storage keeps the bytes of models, None its default. Calling it again does nothing, and
        `load` does without it.

        Raises:
            MissingExtraError: a package that the model needs is not installed.
        """


@runtime_checkable
class ReportsLoadTimings(Protocol):
    """A model that knows what its load was spent on."""

    def parts(self) -> Mapping[str, float]:
        """Seconds by the name of each part, of a load under way those until now; empty before it."""


@runtime_checkable
class ReportsMemory(Protocol):
    """A model whose engine knows what it came to."""

    def measured(self) -> Mapping[str, float]:
        """
        That, in the words of a plan, such as ``kv_tokens``; what nobody knows is left out, all of it before the load.
        """


@runtime_checkable
class DependsOnModels(Protocol):
    """A model that answers with the help of servers elsewhere."""

    def upstreams(self) -> Sequence[Mapping[str, Any]]:  # Any: JSON values
        """How each of them is, for probes; no address beyond host and port."""


@runtime_checkable
class RunsOnSeveralNodes(Protocol):
    """A model that may share its work with other machines."""

    def nodes(self) -> Mapping[int, str]:
        """How those are that it must have, by their ranks, in a word for probes; empty where there are none."""


@runtime_checkable
class FollowsAnotherNode(Protocol):
    """A model that computes for another server, which answers its calls."""

    @property
    def is_wanted(self) -> bool:
        """That server is there, and needs us."""

    @property
    def instead(self) -> str:
        """Who answers, in words for callers."""
