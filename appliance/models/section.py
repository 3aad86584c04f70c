"""
What the sections of all model classes share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, JsonValue

from appliance.contract import Model, Peers
from appliance.section import Section
from appliance.storage import materialize
from appliance.storage.section import StorageSection, StorageSettings

Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@-]*$")]

Report = Callable[[str, int, int | None], None]
"""
Told how far a part of the work is: its name, bytes done, bytes in all or None; may raise to stop the work.
"""


class ModelSection(Section):
    """
    One entry of `models:`; each model class adds its own keys.
    """

    has_engine: ClassVar[bool] = True
    """It computes in this process or below it, and so wants memory, its turn to load, and one process of ours."""

    name: Name
    """The name clients send as `model`; letters, digits and `. _ / @ -`."""

    aliases: tuple[Name, ...] = ()
    """Other names clients may send for the same model."""

    @property
    def names(self) -> tuple[str, ...]:
        """
        Every name that leads to this model, its own first.
        """
        return (self.name, *self.aliases)

    @property
    def computer(self) -> str:
        """
        What computes: vLLM, a class of the user's, or servers elsewhere, which the appliance asks.
        """
        return "vllm" if self.has_engine else "appliance"

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """
        What probes and listings tell of it besides its name.
        """
        return {}

    @property
    def storages(self) -> Mapping[str, StorageSection]:
        """
        What must be materialized before the model loads; empty for a class without storage.
        """
        return {}

    def materialize(self, settings: StorageSettings, report: Report) -> Mapping[str, Path]:
        """
        Bring every storage to this machine, in a form the model can load; blocks.

        Raises:
            StorageError: the bytes cannot be brought.
        """
        return {part: materialize(storage, settings, partial(report, part)) for part, storage in self.storages.items()}

    @abstractmethod
    def build(self, peers: Peers) -> Model:
        """
        The model this section declares, not loaded yet; it may ask `peers` once it is.
        """
