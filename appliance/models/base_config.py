"""What the sections of all model classes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from appliance.config.base import BaseConfig, Change
from appliance.config.limits import LimitsConfig, SloConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.model import Model, Peers
from appliance.planner import ConstraintViolation, EngineRequirements, Plan
from appliance.storage import materialize

Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@-]*$")]

Recovery = Literal["stay", "exit", "restart"]
"""
What is done when a model fails: stay up and say so, end the process, or start its engine anew.
"""

Report = Callable[[str, int, int | None], None]
"""
Told how far a part of the work is: its name, bytes done, bytes in all or None; may raise to stop the work.
"""


class ModelConfig(BaseConfig):
    """One entry of `models:`; each model class adds its own keys."""

    has_engine: ClassVar[bool] = True
    """It computes in this process or below it, and so wants memory, its turn to load, and one process of ours."""

    name: Name
    """The name clients send as `model`; letters, digits and `. _ / @ -`."""

    aliases: tuple[Name, ...] = ()
    """Other names clients may send for the same model."""

    limits: Annotated[LimitsConfig, Change.HOT] = LimitsConfig()
    """How much the model takes on at once, and how long a request may take."""

    slo: Annotated[SloConfig, Change.HOT] = SloConfig()
    """What the model promises to the requests it lets in."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that leads to this model, its own first."""
        return (self.name, *self.aliases)

    @property
    def computer(self) -> str:
        """What computes: vLLM, a class of the user's, or servers elsewhere, which the appliance asks."""
        return "vllm" if self.has_engine else "appliance"

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """What probes and listings tell of it besides its name."""
        return {}

    @property
    def targets(self) -> Sequence[str]:
        """The names of the other models that it asks."""
        return ()

    @property
    def recovery(self) -> Recovery:
        """What is done when it fails; a model that servers elsewhere compute has nothing to start anew."""
        return "stay"

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        """What must be materialized before the model loads; empty for a class without storage."""
        return {}

    @property
    def demand(self) -> EngineRequirements | None:
        """What a plan must know of it beside its storage and layout; None for a class that vLLM does not compute."""
        return None

    def foresee(self, settings: GlobalStorageConfig) -> list[ConstraintViolation]:  # noqa: ARG002 - for those that have a layout
        """What cannot work, known before anything is fetched; blocks.

        Raises:
            StorageError: it cannot be known now.
        """
        return []

    def materialize(self, settings: GlobalStorageConfig, report: Report) -> Mapping[str, Path]:
        """Bring every storage to this machine, in a form the model can load; blocks.

        Raises:
            StorageError: the bytes cannot be brought.
        """
        return {part: materialize(storage, settings, partial(report, part)) for part, storage in self.storages.items()}

    def planned(self, artifacts: Mapping[str, Path]) -> Plan | None:  # noqa: ARG002 - for those that are planned
        """
        What it comes to on this machine, by the files that are here now; None where there is nothing to plan; blocks.

        Raises:
            StorageError: the files are no model's.
        """
        return None

    @abstractmethod
    def build(self, peers: Peers) -> Model:
        """The model this section declares, not loaded yet; it may ask `peers` once it is."""
