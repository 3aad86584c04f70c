"""From the config of a model to its files, its plan and the object that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from appliance.config.engine import EngineConfig, OnnxEncoderConfig, PythonConfig
from appliance.config.models import (
    AdapterConfig,
    EncoderConfig,
    GenerativeConfig,
    LanguageModelConfig,
    ModelConfig,
    PredictorConfig,
    ProxyConfig,
)
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactCorruptError, StorageError
from appliance.core.model import Model, Operation, Peers
from appliance.engines.vllm import gguf_convert
from appliance.models.encoder import EncoderModel
from appliance.models.vllm_model import GenerativeModel, VllmModel, WorkerNodeModel
from appliance.planner.completeness import check_files, check_store
from appliance.planner.hardware import detect_hardware
from appliance.planner.layouts import ConstraintViolation
from appliance.planner.memory import EngineRequirements
from appliance.planner.model_info import inspect_model
from appliance.planner.planner import Plan, precheck_layout, precheck_settings
from appliance.planner.planner import plan as plan_model
from appliance.planner.predictor_plan import PredictorPlan, plan_predictor
from appliance.storage import Cache, materialize

log: structlog.stdlib.BoundLogger = structlog.get_logger()

OnPartProgress = Callable[[str, int, int | None], None]
"""Called with a part's name, its bytes so far and in all, None while that is unknown; may raise to stop the work."""

# The operations that a Python class of each model class may offer.
_OFFERED_OPERATIONS = {
    "generative": frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION}),
    "encoder": frozenset({Operation.EMBEDDING, Operation.RERANK}),
    "predictor": frozenset({Operation.INFERENCE, Operation.PREDICTION, Operation.EXPLANATION}),
}


class ModelFactory:
    """Turns the config of a model into a model; a subclass serves models of another kind.

    `checked` are configs whose layouts were just checked, because their files are on this machine.
    """

    def __init__(self, checked: Iterable[ModelConfig] = ()) -> None:
        self._checked = list(checked)

    def create(self, config: ModelConfig, peers: Peers) -> Model:
        """Return the model, not loaded yet; it may call `peers` once it is."""
        # Imported where they are needed: aiohttp and the classes of Python models take long to import.
        if isinstance(config, ProxyConfig):
            from appliance.models.proxy import ProxyModel

            return ProxyModel(config)
        if isinstance(config, AdapterConfig):
            from appliance.models.adapter import AdapterModel

            return AdapterModel(config, peers)
        if not isinstance(config, GenerativeConfig | EncoderConfig | PredictorConfig):
            raise AssertionError(f"{type(config).__name__} is no model class; this is a bug")
        if isinstance(config.engine, PythonConfig):
            from appliance.python_api.class_loader import LazyPythonModel

            return LazyPythonModel(config.name, config.engine, _OFFERED_OPERATIONS[config.class_])
        if isinstance(config, PredictorConfig):
            from appliance.models.predictor import PredictorModel

            return PredictorModel(config, config.engine)
        model: VllmModel[Any]
        if isinstance(config, GenerativeConfig):
            model = GenerativeModel(config, config.engine, peers.front_end)
        elif isinstance(config.engine, OnnxEncoderConfig):
            from appliance.models.onnx_encoder import OnnxEncoderModel

            return OnnxEncoderModel(config, config.engine, peers.front_end)
        else:
            model = EncoderModel(config, config.engine, peers.front_end)
        if config.layout != "auto" and config.layout.is_worker_node:
            return WorkerNodeModel(model, config.layout.nodes.address or "")
        return model

    def materialize(
        self, config: ModelConfig, storage: GlobalStorageConfig, on_progress: OnPartProgress
    ) -> Mapping[str, Path]:
        """Make every storage of the model a local path, in a format the model can load; blocks.

        Raises:
            ArtifactCorruptError: the store does not have all files of the model; then nothing is downloaded.
            StorageError: the files cannot be fetched.
        """
        try:
            check_store(config, precheck_settings(storage))
        except ArtifactCorruptError:
            raise
        except StorageError as error:
            # A store that cannot be read now does not keep the download from trying, which tells what is wrong.
            log.debug("model.precheck_failed", model=config.name, reason=str(error))
        artifacts = {
            part: materialize(source, storage, partial(on_progress, part)) for part, source in config.storages.items()
        }
        is_generative = isinstance(config, GenerativeConfig) and isinstance(config.engine, EngineConfig)
        if is_generative and artifacts["model"].suffix == ".gguf":
            cache = Cache.at(storage.cache_dir)
            artifacts["model"] = gguf_convert.convert(artifacts["model"], cache, partial(on_progress, "conversion"))
        return artifacts

    def require_complete(self, config: ModelConfig, artifacts: Mapping[str, Path]) -> None:
        """Check that the fetched files are all of a model; what it can do without is logged.

        Raises:
            ArtifactCorruptError: something is missing without which no engine starts.
        """
        source = StorageConfig(uri=str(artifacts["model"]), allow_pickle=True) if "model" in artifacts else None
        for gap in check_files(config, source, GlobalStorageConfig()):
            log.warning("model.incomplete", model=config.name, reason=gap)

    def precheck(self, config: ModelConfig, storage: GlobalStorageConfig) -> Sequence[ConstraintViolation]:
        """Return why the layout of a model that is not downloaded yet cannot work; blocks.

        Raises:
            StorageError: the model's config.json cannot be read now.
        """
        if config not in self._checked:
            return precheck_layout(config, storage)
        # The files may have changed by the next time.
        self._checked.remove(config)
        return []

    def plan(self, config: ModelConfig, artifacts: Mapping[str, Path]) -> Plan | PredictorPlan | None:
        """Return what the fetched files take on this machine; None where there is nothing to plan; blocks.

        Raises:
            StorageError: the files are not a model's.
        """
        if isinstance(config, EncoderConfig) and isinstance(config.engine, OnnxEncoderConfig):
            local = config.model_copy(update={"storage": StorageConfig(uri=str(artifacts["model"]))})
            return plan_predictor(local, GlobalStorageConfig())
        requirements = EngineRequirements.of(config)
        # The sizes of a model whose config is overridden later are unknown.
        if (
            not isinstance(config, LanguageModelConfig)
            or requirements is None
            or "hf_overrides" in requirements.engine.args
        ):
            return None
        source = StorageConfig(uri=str(artifacts["model"]), allow_pickle=config.allow_pickle)
        info = inspect_model(source, GlobalStorageConfig())
        plan = plan_model(config.name, info, config.layout, requirements, detect_hardware())
        # With a layout that cannot work, the plan is for another one.
        return plan if all(refusal.is_memory for refusal in plan.refusals) else None
