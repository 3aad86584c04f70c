"""ONNX files of an encoder, exported from its torch weights in the layout of the hub: float32 and int8."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

# What an export adds to the model's other files.
FLOAT32, INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"


def export(model: Path, target: Path, *, has_int8: bool = False) -> Path:
    """Copy the files of `model` to `target`, with ONNX files in place of its weights; returns `target`."""
    shutil.copytree(model, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    (target / "onnx").mkdir(exist_ok=True)
    with warnings.catch_warnings():
        # Of the exporter, which is deprecated: the new one needs a package more, and writes the same.
        warnings.simplefilter("ignore")
        _export(model, target / FLOAT32)
        if has_int8:
            _quantize(target / FLOAT32, target / INT8)
    return target


def _export(model: Path, file: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    is_classifier = AutoConfig.from_pretrained(model).architectures[0].endswith("ForSequenceClassification")
    auto, output = (AutoModelForSequenceClassification, "logits") if is_classifier else (AutoModel, "last_hidden_state")
    network = auto.from_pretrained(model, attn_implementation="eager").eval()

    class Exported(torch.nn.Module):  # type: ignore[misc] # torch has no types
        def forward(self, input_ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            tensor: torch.Tensor = network(input_ids=input_ids, attention_mask=mask, token_type_ids=types)[output]
            return tensor

    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    ids, mask = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    exported = Exported()
    exported.add_module("network", network)
    torch.onnx.export(
        exported,
        (ids, mask, ids * 0),
        str(file),
        input_names=inputs,
        output_names=[output],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in inputs} | {output: {0: "batch"}}
        if is_classifier
        else {name: {0: "batch", 1: "tokens"} for name in [*inputs, output]},
        opset_version=17,
        dynamo=False,
    )


def _quantize(source: Path, target: Path) -> None:
    """Quantize the weights, with a scale for each channel.

    What is multiplied with other activations stays, and so do the matrices behind the activation function: its outputs
    differ so much in size that one scale for all of them costs most of the quality.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    matrices = [node.name for node in onnx.load(source).graph.node if node.op_type == "MatMul"]
    kept = [name for name in matrices if "/output/dense/" in name and "/attention/" not in name]
    logging.getLogger().addFilter(lambda record: "pre-processing" not in record.getMessage())
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=kept,
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
