"""How a checkpoint is quantized, as far as it decides how its tensors may be cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Quantization:
    """`group` is how many inputs of a layer share a scale, 0 where that does not matter; `outputs` likewise.
    `has_packs` says that several weights lie in one number of 32 bits.
    """

    method: str
    group: int = 0
    outputs: int = 0
    has_packs: bool = False

    @property
    def is_transposed(self) -> bool:
        """Whether packed weights lie input first, as GPTQ's and AWQ's do."""
        return self.method.startswith(("gptq", "awq"))


def quantization_of(*configs: Mapping[str, Any]) -> Quantization | None:  # Any: JSON values
    """What the configs say, the first one first; None where nothing is quantized."""
    written = (each.get(key) for each in configs for key in ("quantization_config", "compression_config"))
    said = next(filter(None, written), None)
    if said is None:
        return None
    if not isinstance(said, Mapping):
        raise ValueError("quantization_config is no mapping; must be one, or left out")
    method = str(said.get("quant_method") or said.get("producer", {}).get("name") or "unknown").lower()
    # Blocks of FP8 weights: outputs, then inputs (``Fp8LinearMethod`` of vLLM).
    if block := said.get("weight_block_size"):
        return Quantization(method, group=int(block[1]), outputs=int(block[0]))
    if method.startswith(("gptq", "awq")):
        return Quantization(method, group=max(0, int(said.get("group_size") or 0)), has_packs=True)
    if method.startswith("compressed"):
        return Quantization(method, group=_group(said), has_packs=said.get("format") == "pack-quantized")
    return Quantization(method)


def _group(said: Mapping[str, Any]) -> int:  # Any: JSON values
    """The group of the weights of compressed-tensors."""
    groups = (said.get("config_groups") or {}).values()
    sizes = ((each.get("weights") or {}).get("group_size") for each in groups if isinstance(each, Mapping))
    return next((size for size in sizes if isinstance(size, int) and size > 0), 0)
