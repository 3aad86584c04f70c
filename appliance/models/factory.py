"""From the config of a model to its files, its plan and the object that serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from appliance import planner
from appliance.config.engine import EngineConfig, PythonConfig
from appliance.config.models import (
    AdapterConfig,
    EncoderConfig,
    GenerativeConfig,
    LocalModelConfig,
    ModelConfig,
    ProxyConfig,
)
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.model import Model, Operation, Peers
from appliance.engines.vllm import gguf_convert
from appliance.models.encoder import EncoderModel
from appliance.models.generative import GenerativeModel
from appliance.models.vllm_model import VllmModel
from appliance.models.worker_node import WorkerNodeModel
from appliance.planner import EngineRequirements, Plan
from appliance.storage import Cache, materialize

OnPartProgress = Callable[[str, int, int | None], None]
"""Called with a part's name, its bytes so far and in all, None while that is unknown; may raise to stop the work."""

_CHAT = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION})
_ENCODE = frozenset({Operation.EMBEDDING, Operation.RERANK})


class ModelFactory:
    """Turns the config of a model into a model; a subclass serves models of another kind."""

    def create(self, config: ModelConfig, peers: Peers) -> Model:
        """Return the model, not loaded yet; it may call `peers` once it is."""
        match config:
            # aiohttp takes 0.2 s to import, and most servers do not need it.
            case ProxyConfig():
                from appliance.models.proxy import ProxyModel

                return ProxyModel(config)
            case AdapterConfig():
                from appliance.models.adapter import AdapterModel

                return AdapterModel(config, peers)
            case GenerativeConfig() | EncoderConfig():
                return _local_model(config, peers)
        raise AssertionError(f"{type(config).__name__} is no model class; this is a bug")

    def materialize(
        self, config: ModelConfig, storage: GlobalStorageConfig, on_progress: OnPartProgress
    ) -> Mapping[str, Path]:
        """Make every storage of the model a local path, in a format the model can load; blocks.

        Raises:
            StorageError: the files cannot be fetched.
        """
        artifacts = {
            part: materialize(source, storage, partial(on_progress, part)) for part, source in config.storages.items()
        }
        is_generative = isinstance(config, GenerativeConfig) and isinstance(config.engine, EngineConfig)
        if is_generative and artifacts["model"].suffix == ".gguf":
            cache = Cache.at(storage.cache_dir)
            artifacts["model"] = gguf_convert.convert(artifacts["model"], cache, partial(on_progress, "conversion"))
        return artifacts

    def plan(self, config: ModelConfig, artifacts: Mapping[str, Path]) -> Plan | None:
        """Return what the fetched files take on this machine; None where there is nothing to plan; blocks.

        Raises:
            StorageError: the files are not a model's.
        """
        requirements = EngineRequirements.of(config)
        if not isinstance(config, LocalModelConfig) or requirements is None:
            return None
        # The sizes of a model whose config is overridden later are unknown.
        if "hf_overrides" in requirements.engine.args:
            return None
        source = StorageConfig(uri=str(artifacts["model"]), allow_pickle=config.allow_pickle)
        plan = planner.plan(
            config.name,
            planner.inspect_model(source, GlobalStorageConfig()),
            config.layout,
            requirements,
            planner.detect_hardware(),
        )
        # With a layout that cannot work, the plan is for another one.
        return plan if all(refusal.is_memory for refusal in plan.refusals) else None


def _local_model(config: GenerativeConfig | EncoderConfig, peers: Peers) -> Model:
    if isinstance(config.engine, PythonConfig):
        # The request and response classes take long to import, and most servers need none of them.
        from appliance.python_api.class_loader import LazyPythonModel

        offered = _CHAT if isinstance(config, GenerativeConfig) else _ENCODE
        return LazyPythonModel(config.name, config.engine, offered)
    model: VllmModel[Any]
    if isinstance(config, GenerativeConfig):
        model = GenerativeModel(config, config.engine, peers.front_end)
    else:
        model = EncoderModel(config, config.engine, peers.front_end)
    if config.layout != "auto" and config.layout.is_worker_node:
        return WorkerNodeModel(model, config.layout.nodes.address or "")
    return model
