"""Models in a vLLM engine: what their classes have in common, the class `generative`, and ranks on a worker node."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.config.models import LORA_PREFIX, GenerativeConfig, LanguageModelConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import EngineDeadError, UnavailableError
from appliance.core.model import TEXT_GENERATIONS, FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.engine import Engine, HeadlessEngine, preload
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.planner.hardware import detect_hardware
from appliance.planner.layouts import search_layout
from appliance.planner.memory import EngineRequirements
from appliance.planner.model_info import inspect_model
from appliance.planner.planner import Plan

log: structlog.stdlib.BoundLogger = structlog.get_logger()

ConfigT = TypeVar("ConfigT", bound=LanguageModelConfig)

TOKENIZER_OPERATIONS = frozenset({Operation.TOKENIZE, Operation.DETOKENIZE})
"""The operations of any model's tokenizer."""


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
    def tokenizer_operations(self) -> frozenset[Operation]:
        """The operations of the model's tokenizer."""
        has_info = self._engine_config.serving.enable_tokenizer_info_endpoint
        return TOKENIZER_OPERATIONS | {Operation.TOKENIZER_INFO} if has_info else TOKENIZER_OPERATIONS

    @property
    @abstractmethod
    def warmup_request(self) -> ModelRequest:
        """See `Model.warmup_request`."""

    def engine_spec(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        """Return what the engine needs to know, given the model's files.

        Raises:
            LoadError, StorageError: the files are not a model of this class.
        """
        return EngineSpec(
            name=self._config.name,
            artifact=artifacts["model"],
            layout=self.resolve_layout(artifacts["model"]),
            engine=self._engine_config,
            allow_pickle=self._config.allow_pickle,
            is_quantized=None if self.plan is None else self.plan.info.architecture.quantization is not None,
        )

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
        return self._engine.states() if self._engine else {}

    def measured(self) -> Mapping[str, float]:
        return self._engine.measured if self._engine else {}

    def load_timings(self) -> Mapping[str, float]:
        return self._engine.load_timings() if self._engine else {}

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
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

    def resolve_layout(self, artifact: Path) -> LayoutConfig:
        """Return the layout, which the config may leave open; `artifact` is the model's directory."""
        if self._config.layout != "auto":
            return self._config.layout
        if self.plan is not None:
            layout, reason = self.plan.layout, self.plan.reason
        else:
            info = inspect_model(StorageConfig(uri=str(artifact)), GlobalStorageConfig())
            requirements = EngineRequirements.of(self._config) or EngineRequirements(self._engine_config)
            layout, reason = search_layout(info, requirements, detect_hardware())
        log.info("layout.chosen", model=self._config.name, reason=reason, **layout.model_dump(exclude_defaults=True))
        return layout


class GenerativeModel(VllmModel[GenerativeConfig]):
    """A language model: chat, completions, responses, messages, and its tokenizer."""

    @property
    def operations(self) -> frozenset[Operation]:
        return TEXT_GENERATIONS | {Operation.COUNT_TOKENS} | self.tokenizer_operations

    @property
    def warmup_request(self) -> ModelRequest:
        prompt = {"model": self._config.name, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        return ModelRequest(Operation.COMPLETION, json.dumps(prompt).encode())

    def engine_spec(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        config = self._config
        return replace(
            super().engine_spec(artifacts),
            chat_template=config.chat_template,
            tool_call_parser=config.tool_call_parser,
            reasoning_parser=config.reasoning_parser,
            lora_adapters={adapter.name: artifacts[LORA_PREFIX + adapter.name] for adapter in config.adapters},
        )


class WorkerNodeModel:
    """A model on a machine that only computes for rank 0 on another one, which answers (`layout.nodes.rank` above 0).

    `model` is the model that the ranks of this machine compute, and is never loaded itself.
    """

    warmup_request = None

    def __init__(self, model: VllmModel[Any], leader_address: str) -> None:  # Any: either class
        self._model = model
        self._engine: HeadlessEngine | None = None
        self.leader = f"rank 0 at {leader_address}"

    @property
    def operations(self) -> frozenset[Operation]:
        """Those of rank 0."""
        return self._model.operations

    @property
    def is_needed(self) -> bool:
        return self._engine is not None and self._engine.is_connected

    def nodes(self) -> Mapping[int, str]:
        """See `RunsOnSeveralNodes.nodes`; the only one is rank 0."""
        return self._engine.states() if self._engine else {}

    def prepare(self, cache_dir: Path | None) -> None:
        self._model.prepare(cache_dir)

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        self._engine = HeadlessEngine(self._model.engine_spec(artifacts))
        await self._engine.start()

    async def check(self) -> None:
        """See `Model.check`; rank 0 is checked too."""
        if self._engine is None:
            raise EngineDeadError("the engine is not running")
        self._engine.check()

    async def handle(self, _request: ModelRequest) -> ModelResponse:
        raise UnavailableError(f"This machine computes for {self.leader}, which answers")

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        return {}

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()
