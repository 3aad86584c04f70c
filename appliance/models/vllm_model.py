"""What the model classes that vLLM computes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from appliance import planner
from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.config.models import LocalModelConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.model import FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.engine import Engine
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.startup import preload
from appliance.planner import EngineRequirements, Plan

log: structlog.stdlib.BoundLogger = structlog.get_logger()

ConfigT = TypeVar("ConfigT", bound=LocalModelConfig)


class VllmModel(ABC, Generic[ConfigT]):
    """A model in a vLLM engine of its own."""

    def __init__(self, config: ConfigT, engine_config: EngineConfig, front_end: FrontEnd) -> None:
        self._config = config
        self._engine_config = engine_config
        self._front_end = front_end
        self._engine: Engine | None = None
        self.plan: Plan | None = None
        """The plan of the files that `load` gets, if there is one; it chose the layout `auto`."""

    @property
    @abstractmethod
    def operations(self) -> frozenset[Operation]:
        """See `Model.operations`."""

    @property
    @abstractmethod
    def warmup_request(self) -> ModelRequest:
        """See `Model.warmup_request`."""

    @abstractmethod
    def engine_spec(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        """Return what the engine needs to know, given the model's files.

        Raises:
            LoadError: the files are not a model of this class.
        """

    def resolve_layout(self, artifact: Path) -> LayoutConfig:
        """Return the layout, which the config may leave open; `artifact` is the model's directory.

        Raises:
            StorageError: the directory is not a model's.
        """
        if self._config.layout != "auto":
            return self._config.layout
        if self.plan is not None:
            layout, reason = self.plan.layout, self.plan.reason
        else:
            info = planner.inspect_model(StorageConfig(uri=str(artifact)), GlobalStorageConfig())
            requirements = EngineRequirements.of(self._config) or EngineRequirements(self._engine_config)
            layout, reason = planner.search_layout(info, requirements, planner.detect_hardware())
        log.info("layout.chosen", model=self._config.name, reason=reason, **layout.model_dump(exclude_defaults=True))
        return layout

    def prepare(self, cache_dir: Path | None) -> None:
        preload(self._config.name, self._config.layout, cache_dir, starts_engine=self._front_end.number == 0)

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        self._engine = Engine(self.engine_spec(artifacts), self._front_end)
        await self._engine.start()

    async def check(self) -> None:
        self.engine.check()

    async def handle(self, request: ModelRequest) -> ModelResponse:
        return await self.engine.handle(request)

    @property
    def max_concurrent(self) -> int | None:
        return self._engine.max_num_seqs if self._engine else None

    def nodes(self) -> Mapping[int, str]:
        return self._engine.nodes if self._engine else {}

    def measured(self) -> Mapping[str, float]:
        return self._engine.measured if self._engine else {}

    def load_timings(self) -> Mapping[str, float]:
        return self._engine.load_timings() if self._engine else {}

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """See `Model.describe`."""
        max_model_len = self._engine.max_model_len if self._engine else None
        return {} if max_model_len is None else {"max_model_len": max_model_len}

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()

    @property
    def engine(self) -> Engine:
        """The engine of a loaded model."""
        if self._engine is None:
            raise AssertionError("the model is not loaded; this is a bug")
        return self._engine
