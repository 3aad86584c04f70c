"""A model of several machines on one that only computes: another answers for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.core.errors import EngineDeadError, UnavailableError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.headless import HeadlessEngine
from appliance.models.vllm_model import VllmModel


class WorkerNodeModel:
    """The ranks of this machine; what the model is, the other one says."""

    warmup_request = None

    def __init__(self, model: VllmModel, leader: str) -> None:
        self._model = model
        self._leader = leader
        self._engine: HeadlessEngine | None = None

    @property
    def operations(self) -> frozenset[Operation]:
        """What rank 0 can be asked."""
        return self._model.operations

    @property
    def is_needed(self) -> bool:
        """Rank 0 has our ranks compute; see `FollowsAnotherNode.is_needed`."""
        return self._engine is not None and self._engine.is_connected

    @property
    def leader(self) -> str:
        """Rank 0; see `FollowsAnotherNode.leader`."""
        return f"rank 0 at {self._leader}"

    def nodes(self) -> Mapping[int, str]:
        """Rank 0; see `RunsOnSeveralNodes.nodes`."""
        return self._engine.nodes if self._engine else {}

    def prepare(self, cache_dir: Path | None) -> None:
        """Import vLLM; see `Preparable.prepare`."""
        self._model.prepare(cache_dir)

    async def load(self, artifacts: Mapping[str, Path]) -> None:
        """Start the ranks of this machine; see `Model.load`."""
        self._engine = HeadlessEngine(self._model.setup(artifacts))
        await self._engine.start()

    async def check(self) -> None:
        """Look at them, and at rank 0; see `Model.check`."""
        if self._engine is None:
            raise EngineDeadError("the engine is not running")
        self._engine.check()

    async def handle(self, _call: ModelRequest) -> ModelResponse:
        """Refuse: it is asked in the wrong place.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(f"This machine computes for {self.leader}, which answers")

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """Nothing; see `Model.describe`."""
        return {}

    async def close(self) -> None:
        """End the ranks of this machine; see `Model.close`."""
        if self._engine is not None:
            await self._engine.close()
