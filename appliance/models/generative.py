"""The model class `generative`: a language model in a vLLM engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from appliance.config.models import ADAPTER_PREFIX, GenerativeConfig
from appliance.core.model import ModelRequest, Operation
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.models.vllm_model import VllmModel


class GenerativeModel(VllmModel[GenerativeConfig]):
    """A language model: chat, completions, responses, messages, and its tokenizer."""

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

    @property
    def warmup_request(self) -> ModelRequest:
        prompt = {"model": self._config.name, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        return ModelRequest(Operation.COMPLETION, json.dumps(prompt).encode())

    def engine_spec(self, artifacts: Mapping[str, Path]) -> EngineSpec:
        config = self._config
        return EngineSpec(
            names=(config.name, *config.aliases),
            artifact=artifacts["model"],
            layout=self.resolve_layout(artifacts["model"]),
            engine=self._engine_config,
            chat_template=config.chat_template,
            allow_pickle=config.allow_pickle,
            tool_call_parser=config.tool_call_parser,
            reasoning_parser=config.reasoning_parser,
            adapters={adapter.name: artifacts[ADAPTER_PREFIX + adapter.name] for adapter in config.adapters},
        )
