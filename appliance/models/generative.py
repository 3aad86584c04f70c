"""The generative class: a language model that vLLM runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from appliance.config.base import BaseConfig
from appliance.config.engine import EngineConfig
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.model import FrontEnd, ModelRequest, Operation
from appliance.engines.vllm import gguf_convert
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.models.base_config import Name, Report
from appliance.models.local_config import LocalModelConfig
from appliance.models.vllm_model import VllmModel
from appliance.storage import Cache

_ADAPTER = "adapters."


class LoraConfig(BaseConfig):
    """A LoRA adapter, served under its own name beside the model it changes."""

    name: Name
    """The name clients send as `model` to get the adapted model."""

    storage: StorageConfig
    """Where the adapter's bytes come from."""


class GenerativeConfig(LocalModelConfig):
    """A language model: chat, completions, responses, messages."""

    offered = frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION})

    class_: Annotated[Literal["generative"], Field(alias="class")]
    """The model class."""

    chat_template: str | None = None
    """Jinja template for chat, inline or the path of a file; unset is the model's own."""

    tool_call_parser: str | None = None
    """vLLM's parser of tool calls, such as `hermes`; unset leaves `tool_choice: auto` off."""

    reasoning_parser: str | None = None
    """vLLM's parser that splits reasoning from the answer, such as `qwen3`; unset leaves them together."""

    adapters: tuple[LoraConfig, ...] = ()
    """LoRA adapters, each servable by its name."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, *(adapter.name for adapter in self.adapters))

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        return {**super().storages} | {_ADAPTER + adapter.name: adapter.storage for adapter in self.adapters}

    def materialize(self, settings: GlobalStorageConfig, report: Report) -> Mapping[str, Path]:
        artifacts = dict(super().materialize(settings, report))
        if isinstance(self.engine, EngineConfig) and artifacts["model"].suffix == ".gguf":
            cache = Cache.at(settings.cache_dir)
            artifacts["model"] = gguf_convert.convert(artifacts["model"], cache, partial(report, "conversion"))
        return artifacts

    def in_vllm(self, engine: EngineConfig, front_end: FrontEnd) -> VllmModel:
        return GenerativeModel(self, engine, front_end)


class GenerativeModel(VllmModel):
    """A language model in a vLLM engine."""

    operations = frozenset(
        {
            Operation.CHAT_COMPLETION,
            Operation.COMPLETION,
            Operation.RESPONSE,
            Operation.MESSAGE,
            Operation.COUNT_TOKENS,
            Operation.TOKENIZE,
            Operation.DETOKENIZE,
        }
    )

    def __init__(self, config: GenerativeConfig, engine: EngineConfig, front_end: FrontEnd) -> None:
        super().__init__(config.name, config.layout, front_end)
        self._config = config
        self._settings = engine

    @property
    def warmup_request(self) -> ModelRequest:
        """One token."""
        prompt = {"model": self._config.name, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        return ModelRequest(Operation.COMPLETION, json.dumps(prompt).encode())

    def setup(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        config = self._config
        return EngineSpec(
            names=(config.name, *config.aliases),
            artifact=artifacts["model"],
            layout=config.settled(artifacts["model"]),
            engine=self._settings,
            chat_template=config.chat_template,
            allow_pickle=config.allow_pickle,
            tool_call_parser=config.tool_call_parser,
            reasoning_parser=config.reasoning_parser,
            adapters={adapter.name: artifacts[_ADAPTER + adapter.name] for adapter in config.adapters},
        )
