"""The generative class: a language model that vLLM runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from appliance.config.engine import EngineConfig
from appliance.config.models import ADAPTER_PREFIX, GenerativeConfig
from appliance.core.model import FrontEnd, ModelRequest, Operation
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.models.vllm_model import VllmModel


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
        super().__init__(config, front_end)
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
            layout=self.resolve_layout(artifacts["model"]),
            engine=self._settings,
            chat_template=config.chat_template,
            allow_pickle=config.allow_pickle,
            tool_call_parser=config.tool_call_parser,
            reasoning_parser=config.reasoning_parser,
            adapters={adapter.name: artifacts[ADAPTER_PREFIX + adapter.name] for adapter in config.adapters},
        )
