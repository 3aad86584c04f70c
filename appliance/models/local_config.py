"""What the sections of models that are computed here share: by vLLM, or by a class of the user's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import structlog
from pydantic import ConfigDict, Discriminator, JsonValue, Tag, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from appliance import planner
from appliance.config.engine import EngineConfig, PythonConfig
from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.model import FrontEnd, Model, Operation, Peers
from appliance.models.base_config import ModelConfig, Recovery
from appliance.models.vllm_model import VllmModel
from appliance.models.worker_node import WorkerNodeModel
from appliance.planner import ConstraintViolation, EngineRequirements, Plan

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_PYTHON = "python"


def _kind(engine: Any) -> str:  # Any: what a file holds before it is checked
    is_python = _PYTHON in engine if isinstance(engine, dict) else isinstance(engine, PythonConfig)
    return "PythonConfig" if is_python else "EngineConfig"


AnyEngine = Annotated[
    Annotated[EngineConfig, Tag("EngineConfig")] | Annotated[PythonConfig, Tag("PythonConfig")],
    Discriminator(_kind),
]
"""
The engine: a class of the user's where the key `python` names one, else vLLM.
"""

_WHERE_FROM = "Where the model's bytes come from"

_STORAGE_FOR_VLLM: JsonDict = {
    "if": {"required": ["engine"], "properties": {"engine": {"type": "object", "required": [_PYTHON]}}},
    "else": {"required": ["storage"], "properties": {"storage": {"description": f"{_WHERE_FROM}."}}},
}


class LocalModelConfig(ModelConfig):
    """A model that is computed here."""

    model_config = ConfigDict(json_schema_extra=_STORAGE_FOR_VLLM)

    offered: ClassVar[frozenset[Operation]]
    """What a class of the user's can be asked."""

    pools: ClassVar[bool] = False
    """It makes vectors or classes of a text, and writes none."""

    storage: StorageConfig | SkipJsonSchema[None] = None
    """Where the model's bytes come from; it may be left out with `engine.python`, which finds them as `model_dir`."""

    layout: AnyLayout = LayoutConfig()
    """
    How the model sits on devices and machines; unset is one device. `auto` takes the fewest devices of this machine
    that hold the model, and the log says why.
    """

    engine: AnyEngine = EngineConfig()
    """What computes: vLLM, or with the key `python` a class of yours."""

    on_failure: Recovery = "stay"
    """
    What is done when the model fails. `stay` keeps the process up, with liveness 503 and the reason, for a platform
    that restarts what is not live. `exit` ends the process once its calls are over, with the exit code of the fault, 4
    where the engine died. `restart` starts an engine that died or stalled anew in place, after pauses that grow, and
    stays failed after the fifth death in a row; what keeps it from starting the first time is not retried. On a machine
    that computes for another (`layout.nodes.rank` above 0), `stay` is `exit`.
    """

    @model_validator(mode="after")
    def _has_storage(self) -> Self:
        if self.storage is None and not isinstance(self.engine, PythonConfig):
            raise ValueError(f"has no storage; must have it: {_WHERE_FROM.lower()}")
        return self

    @property
    def computer(self) -> str:
        return _PYTHON if isinstance(self.engine, PythonConfig) else super().computer

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        if isinstance(self.layout, str):
            return {"layout": self.layout}
        return {"layout": self.layout.model_dump(mode="json", exclude_defaults=True)}

    @property
    def recovery(self) -> Recovery:
        if self.on_failure == "stay" and self.layout != "auto" and self.layout.is_following:
            return "exit"
        return self.on_failure

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        return {} if self.storage is None else {"model": self.storage}

    @property
    def demand(self) -> EngineRequirements | None:
        return EngineRequirements(self.engine, is_pooling=self.pools) if isinstance(self.engine, EngineConfig) else None

    def foresee(self, settings: GlobalStorageConfig) -> list[ConstraintViolation]:
        if self.storage is None or not isinstance(self.engine, EngineConfig):
            return []
        return planner.precheck_layout(self.storage, self.layout, self.engine, settings)

    def settled(self, artifact: Path) -> LayoutConfig:
        """The layout, chosen now where that was left to us; `artifact` is the model's directory.

        Raises:
            StorageError: the directory is no model's.
        """
        if self.layout != "auto" or self.demand is None:
            return LayoutConfig() if self.layout == "auto" else self.layout
        subject = planner.inspect_model(StorageConfig(uri=str(artifact)), GlobalStorageConfig())
        layout, reason = planner.search_layout(subject, self.demand, planner.detect_hardware())
        log.info("layout.chosen", model=self.name, reason=reason, **layout.model_dump(exclude_defaults=True))
        return layout

    def planned(self, artifacts: Mapping[str, Path]) -> Plan | None:
        # Sizes that are changed later are not known.
        if self.demand is None or "hf_overrides" in self.demand.engine.args:
            return None
        here = StorageConfig(uri=str(artifacts["model"]), allow_pickle=self.allow_pickle)
        made = planner.plan(
            self.name,
            planner.inspect_model(here, GlobalStorageConfig()),
            self.layout,
            self.demand,
            planner.detect_hardware(),
        )
        # Where the layout cannot work, it is another one that was planned.
        return made if all(each.is_memory for each in made.refusals) else None

    @property
    def allow_pickle(self) -> bool:
        """The storage's word on weights that may run code."""
        return self.storage is not None and self.storage.allow_pickle

    def build(self, peers: Peers) -> Model:
        if isinstance(self.engine, PythonConfig):
            # The classes of requests and answers are no business of a program that only checks a file.
            from appliance.python_api.class_loader import LazyPythonModel

            return LazyPythonModel(self.name, self.engine, self.offered)
        model = self.in_vllm(self.engine, peers.front_end)
        if self.layout != "auto" and self.layout.is_following:
            return WorkerNodeModel(model, self.layout.nodes.address or "")
        return model

    @abstractmethod
    def in_vllm(self, engine: EngineConfig, front_end: FrontEnd) -> VllmModel:
        """The model in an engine of vLLM's."""
