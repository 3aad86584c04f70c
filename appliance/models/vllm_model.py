"""A model that is computed here, in a vLLM engine of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from appliance import planner
from appliance.config.layout import LayoutConfig
from appliance.config.models import LocalModelConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.model import FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.engine import Engine
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.startup import preload
from appliance.planner import EngineRequirements, Plan

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class VllmModel(ABC):
    """What the model classes that run in vLLM share: a setup of theirs, and the engine that comes of it."""

    def __init__(self, config: LocalModelConfig, front_end: FrontEnd) -> None:
        self._name = config.name
        self._local = config
        self._front_end = front_end
        self._engine: Engine | None = None
        self.plan: Plan | None = None
        """The plan of the files that are loaded, if there is one."""

    @property
    @abstractmethod
    def operations(self) -> frozenset[Operation]:
        """What it can be asked; see `Model.operations`."""

    @property
    @abstractmethod
    def warmup_request(self) -> ModelRequest:
        """The smallest call it must answer; see `Model.warmup_request`."""

    @abstractmethod
    def setup(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        """What vLLM is told, now that the bytes are here.

        Raises:
            LoadError: these bytes are no model of this class.
        """

    def resolve_layout(self, artifact: Path) -> LayoutConfig:
        """Return the layout, chosen now where the config says `auto`; `artifact` is the model's directory.

        Raises:
            StorageError: the directory is not a model's.
        """
        layout, requirements = self._local.layout, EngineRequirements.of(self._local)
        if layout != "auto":
            return layout
        if self.plan is not None:
            log.info(
                "layout.chosen",
                model=self._name,
                reason=self.plan.reason,
                **self.plan.layout.model_dump(exclude_defaults=True),
            )
            return self.plan.layout
        if requirements is None:
            return LayoutConfig()
        info = planner.inspect_model(StorageConfig(uri=str(artifact)), GlobalStorageConfig())
        layout, reason = planner.search_layout(info, requirements, planner.detect_hardware())
        log.info("layout.chosen", model=self._name, reason=reason, **layout.model_dump(exclude_defaults=True))
        return layout

    def prepare(self, cache_dir: Path | None) -> None:
        """Begin what the engine's start needs in any case; see `Preparable.prepare`."""
        preload(self._name, self._local.layout, cache_dir, starts_engine=self._front_end.number == 0)

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        """Start the engine; see `Model.load`."""
        self._engine = Engine(self.setup(artifacts), self._front_end)
        await self._engine.start()

    async def check(self) -> None:
        """Look at the engine; see `Model.check`."""
        self.running.check()

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Have the engine answer; see `Model.handle`."""
        return await self.running.handle(call)

    @property
    def max_concurrent(self) -> int | None:
        """How many calls the engine computes at once; see `LimitsConcurrency`."""
        return self._engine.max_num_seqs if self._engine else None

    def nodes(self) -> Mapping[int, str]:
        """The other machines; see `RunsOnSeveralNodes`."""
        return self._engine.nodes if self._engine else {}

    def measured(self) -> Mapping[str, float]:
        """Bytes of weights and tokens of the KV cache; see `ReportsMemory`."""
        return self._engine.measured if self._engine else {}

    def load_timings(self) -> Mapping[str, float]:
        """What the engine's start was spent on; see `ReportsLoadTimings`."""
        return self._engine.load_timings() if self._engine else {}

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """Facts for listings; see `Model.describe`."""
        length = self._engine.max_model_len if self._engine else None
        return {} if length is None else {"max_model_len": length}

    async def close(self) -> None:
        """End the engine; see `Model.close`."""
        if self._engine is not None:
            await self._engine.close()

    @property
    def running(self) -> Engine:
        """The engine, which there is from the load on."""
        if self._engine is None:
            raise AssertionError("asked before it was loaded; this is a bug")
        return self._engine
