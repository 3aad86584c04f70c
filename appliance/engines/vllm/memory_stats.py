"""What an engine came to, as it knows itself once it has started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from appliance.engines.vllm.engine_args import WORKER

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


async def measure(llm: AsyncLLM) -> Mapping[str, int]:
    """Bytes of weights on the rank that has most, tokens in the KV cache of one copy; what nobody knows is left out."""
    known = {"weight_bytes": await _weight_bytes(llm), "kv_tokens": llm.vllm_config.cache_config.kv_cache_size_tokens}
    return {name: figure for name, figure in known.items() if figure is not None}


async def _weight_bytes(llm: AsyncLLM) -> int | None:
    """What the workers say, unless the config has put an extension of its own in place of ours."""
    if llm.vllm_config.parallel_config.worker_extension_cls != WORKER:
        return None
    told: list[int | None] = await llm.collective_rpc("weight_bytes")
    return max((each for each in told if each is not None), default=None)
