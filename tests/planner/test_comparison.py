"""What a plan said is kept, and held against what the model came to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from doubles import Double, DoubleConfig, DoubleFactory, config
from structlog.testing import capture_logs

from appliance.config.models import GenerativeConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactCorruptError
from appliance.core.model import Peers
from appliance.models.factory import ModelFactory, OnPartProgress
from appliance.models.manager import ModelManager
from appliance.planner.planner import Plan
from appliance.planner.predictor_plan import PredictorPlan

Write = Callable[..., Path]
Published = Mapping[str, Mapping[str, Any]]


class MeasuredDouble(Double):
    """Knows what its cache holds."""

    def measured(self) -> Mapping[str, float]:
        """A fourth of a thousand tokens."""
        return {"kv_tokens": 250}


class PlannedConfig(DoubleConfig):
    """Declares a double that is planned as a generative model of the same files is."""

    folder: Path
    """Where these are."""

    def materialize(self, storage: GlobalStorageConfig, on_progress: OnPartProgress) -> Mapping[str, Path]:
        return {"model": self.folder}

    def plan(self, artifacts: Mapping[str, Path]) -> Plan | PredictorPlan | None:
        fields = {"name": self.name, "class": "generative", "storage": {"uri": str(self.folder)}}
        engine = {"kv_cache_memory_bytes": 1 << 28, "max_model_len": 1024}
        model = GenerativeConfig.model_validate(fields | {"engine": engine})
        return ModelFactory().plan(model, artifacts)

    def build(self, peers: Peers) -> MeasuredDouble:
        made = MeasuredDouble()
        made.may_load.set()
        return made


class UnplannedConfig(PlannedConfig):
    """Declares one of which no plan can be made."""

    def plan(self, artifacts: Mapping[str, Path]) -> Plan | None:
        raise ArtifactCorruptError("it is none of the known ones")


async def _served(model_config: DoubleConfig) -> tuple[Mapping[str, Any], list[Any]]:
    """The model as probes show it once it is ready, and what was logged."""
    manager = ModelManager(config(model_config), factory=DoubleFactory())
    with capture_logs() as logged:
        manager.start()
        try:
            async with asyncio.timeout(30):
                while not manager.is_ready:
                    await asyncio.sleep(0.01)
            return manager.health().models[0], logged
        finally:
            await manager.stop()


async def test_probes_and_log_compare_the_plan_with_the_load(
    write: Write, tmp_path: Path, published: Published
) -> None:
    """Both sides have the same names, what nobody measured has one, and the log says how far they are apart."""
    folder = write(published["SmolLM2-135M"])

    described, logged = await _served(PlannedConfig(name="it", has_storage=True, folder=folder))

    planned, real = described["plan"]["planned"], described["plan"]["measured"]
    (event,) = [each for each in logged if each["event"] == "model.measured"]
    assert planned["weight_bytes"] == 134_515_008 * 4
    assert planned["kv_cache_bytes"] == 1 << 28
    assert planned["kv_tokens"] > 0
    assert real["kv_tokens"] == 250
    assert real.keys() == {"kv_tokens", "load_seconds"}
    assert event["ratio"]["kv_tokens"] == pytest.approx(250 / planned["kv_tokens"], abs=0.001)
    assert event["planned"] == planned


async def test_a_model_without_a_plan_is_served(tmp_path: Path) -> None:
    """The probes have no plan, and the log says why."""
    described, logged = await _served(UnplannedConfig(name="it", has_storage=True, folder=tmp_path))

    (event,) = [each for each in logged if each["event"] == "model.plan_failed"]
    assert "plan" not in described
    assert "none of the known ones" in event["reason"]


def test_a_layout_that_cannot_work_has_no_plan(write: Write, published: Published) -> None:
    """Its plan is that of another layout, against which nothing can be held; nor is that of changed sizes."""
    folder = write(published["SmolLM2-135M"])
    fields = {"name": "it", "class": "generative", "storage": {"uri": str(folder)}}
    configs = [
        GenerativeConfig.model_validate(fields | more)
        for more in ({"layout": {"tensor_parallel": 2}}, {"engine": {"args": {"hf_overrides": {"hidden_size": 8}}}})
    ]

    assert [ModelFactory().plan(model_config, {"model": folder}) for model_config in configs] == [None, None]
