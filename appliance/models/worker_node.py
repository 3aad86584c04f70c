"""A model on a machine that only computes for rank 0 on another one, which answers (`layout.nodes.rank` above 0)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.core.errors import EngineDeadError, UnavailableError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.headless import HeadlessEngine
from appliance.models.vllm_model import VllmModel


class WorkerNodeModel:
    """The ranks of this machine; `model` is the model that they compute, and is never loaded itself."""

    warmup_request = None

    def __init__(self, model: VllmModel[Any], leader_address: str) -> None:  # Any: either class
        self._model = model
        self._leader_address = leader_address
        self._engine: HeadlessEngine | None = None

    @property
    def operations(self) -> frozenset[Operation]:
        """Those of rank 0."""
        return self._model.operations

    @property
    def is_needed(self) -> bool:
        return self._engine is not None and self._engine.is_connected

    @property
    def leader(self) -> str:
        return f"rank 0 at {self._leader_address}"

    def nodes(self) -> Mapping[int, str]:
        """See `RunsOnSeveralNodes.nodes`; the only one is rank 0."""
        return self._engine.nodes if self._engine else {}

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
        """Refuse the request, because it belongs to rank 0.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(f"This machine computes for {self.leader}, which answers")

    def describe(self) -> Mapping[str, Any]:  # Any: JSON values
        """See `Model.describe`."""
        return {}

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()
