"""A setup as vLLM's own config, refused before any weights are read where that can be told."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog

from appliance.core.errors import LoadError
from appliance.engines.vllm.cpu_profile import CpuProfile
from appliance.engines.vllm.engine_args import EngineSpec, engine_arguments, frontend_arguments
from appliance.engines.vllm.env import set_environment
from appliance.engines.vllm.frontend_rendezvous import FrontendRendezvous

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def configure(setup: EngineSpec, meeting: FrontendRendezvous) -> tuple[VllmConfig, Namespace]:
    """vLLM's config of the engine, and the arguments for its serving classes.

    What vLLM refuses, it refuses with exceptions of many kinds.

    Raises:
        LoadError: the model has no chat template.
    """
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    # An engine before this one has had its settings remembered.
    envs.disable_envs_cache()
    set_environment(setup.layout, setup.addresses)
    on_cpu = current_platform.is_cpu()
    engine_args = AsyncEngineArgs(**engine_arguments(setup, on_cpu=on_cpu))
    engine_args._api_process_count, engine_args._api_process_rank = meeting.count, meeting.number
    with _same_libraries() if setup.layout.is_alone else contextlib.nullcontext():
        config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    if setup.chat_template is None and setup.pooler is None:
        _require_chat_template(setup.names[0], config.model_config)
    if on_cpu and setup.layout.is_alone:
        _tell_profile(setup, config)
    arguments = frontend_arguments(setup, engine_args)
    arguments.structured_outputs_config = config.structured_outputs_config
    return config, arguments


@contextlib.contextmanager
def _same_libraries() -> Iterator[None]:
    """Leave preloaded libraries as they are, which vLLM names anew for processes that it would start itself."""
    before = os.environ.get("LD_PRELOAD")
    try:
        yield
    finally:
        if before is not None:
            os.environ["LD_PRELOAD"] = before
        else:
            os.environ.pop("LD_PRELOAD", None)


def _tell_profile(setup: EngineSpec, config: VllmConfig) -> None:
    """Say how it computes on the CPU, and by which keys and variables somebody chose in our place."""
    engine, profile = setup.engine, CpuProfile.of(setup.layout)
    keys = {
        "engine.dtype": engine.dtype != "auto",
        "engine.enforce_eager": engine.enforce_eager is not None,
        "engine.kv_cache_memory_bytes": engine.kv_cache_memory_bytes is not None,
        "layout.kv_cache": setup.layout.kv_cache is not None,
    }
    log.info(
        "profile.chosen",
        model=setup.names[0],
        threads=profile.threads,
        openmp=profile.openmp,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        eager=config.model_config.enforce_eager,
        kv_cache_bytes=config.cache_config.kv_cache_memory_bytes,
        said=[*profile.said, *(key for key, is_said in keys.items() if is_said)],
    )


def _require_chat_template(name: str, model: ModelConfig) -> None:
    """Refuse a model without a chat template before its weights are read, where that can be told."""
    from transformers import PreTrainedTokenizerBase
    from vllm.renderers.hf import resolve_chat_template
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model)
    # Other tokenizers, Mistral's for one, carry their chat format in code.
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    if resolve_chat_template(tokenizer, None, None, model_config=model) is None:
        raise LoadError(
            f"model {name!r} has no chat template; give one as chat_template: (a file or the text), "
            "or put class: adapter in front of it"
        )
