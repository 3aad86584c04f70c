"""Checkpoints in the formats of quantizers: the right names, types and shapes, and numbers of no meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 128
"""Inputs that share a scale."""

# Numbers of 4 bits in one of 32.
_PACKED = 8

_INT8 = {
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
    "targets": ["Linear"],
}

_CONFIGS: Mapping[str, Mapping[str, Any]] = {  # Any: JSON values
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": _INT8},
        "ignore": ["lm_head"],
    },
}
"""What a `config.json` says of each format."""


def quantized(folder: Path, method: str) -> None:
    """Write the linear layers of a model's checkpoint anew as a quantizer would."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(file).items():
        if name.endswith("_proj.weight"):
            layer = name.removesuffix(".weight")
            tensors |= {f"{layer}.{part}": made for part, made in _parts(method, *tensor.shape).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": _CONFIGS[method]}))


def _parts(method: str, outputs: int, inputs: int) -> Mapping[str, Tensor]:
    """What there is in place of a layer's weight."""
    import torch

    def zeros(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros((rows, columns), dtype=dtype)

    match method:
        case "int8":
            return {"weight": zeros(outputs, inputs, torch.int8), "weight_scale": zeros(outputs, 1, torch.bfloat16)}
        case "awq":
            packed = {"qweight": zeros(inputs, outputs // _PACKED, torch.int32)}
        case _:
            packed = {"qweight": zeros(inputs // _PACKED, outputs, torch.int32)}
            packed["g_idx"] = torch.arange(inputs, dtype=torch.int32) // GROUP
    zero_points = zeros(inputs // GROUP, outputs // _PACKED, torch.int32)
    return packed | {"qzeros": zero_points, "scales": zeros(inputs // GROUP, outputs, torch.bfloat16)}
