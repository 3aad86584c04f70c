"""A double of a model at the interface `Model`, its configs, and the factory that makes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from appliance.config import Config
from appliance.config.models import FailureAction, ModelConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ApplianceError, EngineDeadError, UnavailableError
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation, Peers
from appliance.models.factory import ModelFactory, OnPartProgress
from appliance.planner.planner import Plan
from appliance.planner.predictor_plan import PredictorPlan

WARMUP_REQUEST = ModelRequest(Operation.COMPLETION, b'{"prompt": "proof"}')


class Double:
    """Echoes requests; its attributes say what it waits for and how it fails."""

    operations = frozenset({Operation.COMPLETION, Operation.CHAT_COMPLETION})

    def __init__(self, warmup_request: ModelRequest | None = WARMUP_REQUEST) -> None:
        self.warmup_request = warmup_request
        self.may_load = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.load_fault: Exception | None = None
        self.answer_fault: Exception | None = None
        self.stream_fault: Exception | None = None
        self.is_dead = False
        self.is_away = False
        self.was_cancelled = False
        self.closed = 0
        self.streams_closed = 0
        self.artifacts: Mapping[str, Path] = {}
        self.prepared: list[Path | None] = []
        self.prepare_fault: Exception | None = None

    def prepare(self, cache_dir: Path | None) -> None:
        """Notes where it may keep things."""
        self.prepared.append(cache_dir)
        if self.prepare_fault:
            raise self.prepare_fault

    def load_timings(self) -> Mapping[str, float]:
        """One part, as engines have several."""
        return {"weights": 1.5}

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        """Waits for `may_load`."""
        self.artifacts = artifacts
        try:
            await self.may_load.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self.load_fault:
            raise self.load_fault

    async def check(self) -> None:
        """Fails once `is_dead`, and while `is_away`."""
        if self.is_away:
            raise UnavailableError("nobody answers")
        if self.is_dead:
            raise EngineDeadError("the engine died: it was told to")

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Echoes; a body that says stream gets one that waits for `may_finish` before its end."""
        if self.answer_fault:
            raise self.answer_fault
        if b"wait" in call.body:
            await self.may_finish.wait()
        if b"stream" in call.body:
            return ModelResponse(self._stream(), media_type="text/event-stream")
        return ModelResponse(call.body)

    async def _stream(self) -> AsyncGenerator[bytes]:
        try:
            yield b"data: 1\n\n"
            await self.may_finish.wait()
            if self.stream_fault:
                raise self.stream_fault
            yield b"data: [DONE]\n\n"
        finally:
            self.streams_closed += 1

    def describe(self) -> Mapping[str, Any]:
        """A length, as real models have one."""
        return {"max_model_len": 8}

    async def close(self) -> None:
        """Counts."""
        self.closed += 1


class DoubleConfig(ModelConfig):
    """The config of a double."""

    class_: Literal["double"] = Field("double", alias="class")
    """The model class."""

    has_storage: bool = False
    """Whether it has files to download."""

    fetch_fault: Any = None
    """The error of the download."""

    may_fetch: Any = None
    """A `threading.Event` that the download waits for."""

    on_failure: FailureAction = "stay"
    """What happens when it fails."""

    @property
    def failure_action(self) -> FailureAction:
        return self.on_failure

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        return {"model": StorageConfig(uri="pypi://double==1/x")} if self.has_storage else {}

    def materialize(self, storage: GlobalStorageConfig, on_progress: OnPartProgress) -> Mapping[str, Path]:
        """Report progress, and return a path that does not exist; `DoubleFactory` calls it."""
        on_progress("model", 50, 200)
        if self.may_fetch is not None:
            self.may_fetch.wait(10)
        if isinstance(self.fetch_fault, ApplianceError):
            raise self.fetch_fault
        return {"model": Path("/nowhere")}

    def build(self, peers: Peers) -> Model:
        """Return the double; `DoubleFactory` calls it."""
        return Double()

    def plan(self, artifacts: Mapping[str, Path]) -> Plan | PredictorPlan | None:
        """Return no plan; `DoubleFactory` calls it."""
        return None


class RemoteConfig(DoubleConfig):
    """The config of a double without an engine and without a warm-up request."""

    has_engine: ClassVar[bool] = False

    asks: tuple[str, ...] = ()
    """Names of the models that it sends requests to."""

    @property
    def targets(self) -> Sequence[str]:
        return self.asks

    def build(self, peers: Peers) -> Model:
        return Double(warmup_request=None)


class DoubleFactory(ModelFactory):
    """Makes doubles, and models of the product from other configs."""

    def create(self, config: ModelConfig, peers: Peers) -> Model:
        return config.build(peers) if isinstance(config, DoubleConfig) else super().create(config, peers)

    def materialize(
        self, config: ModelConfig, storage: GlobalStorageConfig, on_progress: OnPartProgress
    ) -> Mapping[str, Path]:
        if isinstance(config, DoubleConfig):
            return config.materialize(storage, on_progress)
        return super().materialize(config, storage, on_progress)

    def plan(self, config: ModelConfig, artifacts: Mapping[str, Path]) -> Plan | PredictorPlan | None:
        return config.plan(artifacts) if isinstance(config, DoubleConfig) else super().plan(config, artifacts)


def config(*configs: ModelConfig, **others: Any) -> Config:
    """Return a config of doubles, which no file could declare."""
    plain = Config.model_fields.keys() - {"models"}
    defaults = {name: Config.model_fields[name].get_default(call_default_factory=True) for name in plain}
    return Config.model_construct(models=configs or (DoubleConfig(name="one"),), **(defaults | others))
