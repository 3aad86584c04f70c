"""Config and tensors of a GGUF file, read from its header.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from appliance.core.errors import ArtifactCorruptError
from appliance.planner.safetensors_header import TensorInfo, require_tensor_count
from appliance.storage.file_reader import FileRange, FileReader

_BLOCK = 1 << 20
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9

# Formats of `struct` by the types of values that are numbers.
_NUMBERS: Mapping[int, str] = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}

# The header is mostly the vocabulary: 20 MB for 300,000 tokens.
_MAX_HEADER_BYTES = 256 * 1024 * 1024
_MAX_ELEMENTS = 4_000_000
_MAX_VALUES = 65_536
_MAX_DEPTH = 4
_MAX_DIMENSIONS = 8

# GGUF keys (after the prefix of the architecture) and the keys of config.json.
_CONFIG_KEYS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "vocab_size": "vocab_size",
}

# GGUF tensor names and the checkpoint names that sharding rules know; other names are kept.
_TENSOR_NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}


def read_gguf(files: FileReader, name: str) -> tuple[Mapping[str, Any], list[TensorInfo], int]:  # Any: JSON values
    """Return a config.json, the tensors as the conversion writes them, and how many bytes were read.

    Raises:
        ArtifactCorruptError: it is not a GGUF file.
    """
    header = _HeaderReader(files, name)
    try:
        if header.take(4) != _MAGIC:
            raise ArtifactCorruptError(f"{files.location}: {name} is not a GGUF file, whatever its name says")
        if (version := header.number("I")) not in _VERSIONS:
            raise ArtifactCorruptError(
                f"{files.location}: GGUF version {version} is not known, which {name} has; must be one of {_VERSIONS}"
            )
        tensor_count, value_count = header.number("Q"), header.number("Q")
        require_tensor_count(files, name, tensor_count)
        _require(value_count, _MAX_VALUES, "values")
        values = {header.text(): header.value(header.number("I")) for _ in range(value_count)}
        tensors = [_tensor(header) for _ in range(tensor_count)]
        is_tied = not any(each.name == "lm_head.weight" for each in tensors)
        return _config(values, is_tied), tensors, header.read_bytes
    except (struct.error, ValueError) as error:
        raise ArtifactCorruptError(f"{files.location}: {name} is not a whole GGUF file ({error})") from error


def _config(values: Mapping[str, Any], is_tied: bool) -> Mapping[str, Any]:  # Any: JSON values
    kind = str(values.get("general.architecture", ""))
    config = {ours: values[f"{kind}.{theirs}"] for theirs, ours in _CONFIG_KEYS.items() if f"{kind}.{theirs}" in values}
    for key in ("block_count", "embedding_length", "attention.head_count"):
        value = values.get(f"{kind}.{key}")
        if type(value) is not int or value < 1:
            fault = f"has no {kind}.{key}" if value is None else f"{kind}.{key} is {str(value)[:60]!r}"
            raise ValueError(f"{fault}; must be a whole number of at least 1")
    config.setdefault("vocab_size", values.get("tokenizer.ggml.tokens", 0))
    return {**config, "model_type": kind, "tie_word_embeddings": is_tied, "dtype": "bfloat16"}


def _tensor(header: _HeaderReader) -> TensorInfo:
    name = header.text()
    dimensions = header.number("I")
    _require(dimensions, _MAX_DIMENSIONS, f"dimensions of {name}")
    shape = tuple(header.number("Q") for _ in range(dimensions))
    # Its type and its position.
    header.take(4 + 8)
    parts = name.split(".")
    is_in_layer = parts[0] == "blk" and len(parts) > 2
    prefix, stem = (f"model.layers.{parts[1]}.", parts[2:-1]) if is_in_layer else ("", parts[:-1])
    joined = ".".join(stem)
    # GGUF writes dimensions innermost first.
    return TensorInfo(f"{prefix}{_TENSOR_NAMES.get(joined, joined)}.{parts[-1]}", "BF16", shape[::-1])


def _require(count: int, maximum: int, noun: str) -> None:
    if count > maximum:
        raise ValueError(f"it has {count} {noun}; must be at most {maximum}")


class _HeaderReader:
    """Reads a file sequentially, a megabyte at a time."""

    def __init__(self, files: FileReader, name: str) -> None:
        self._files, self._name, self._buffer, self._at = files, name, b"", 0
        self.read_bytes = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        _require(self.read_bytes + size, _MAX_HEADER_BYTES, "bytes before its weights")
        while len(self._buffer) - self._at < size:
            end = min(self.read_bytes + max(_BLOCK, size), self._files.files[self._name])
            if end == self.read_bytes:
                raise ValueError("it ends early")
            self._buffer = self._buffer[self._at :] + self._files.read([FileRange(self._name, self.read_bytes, end)])[0]
            self._at, self.read_bytes = 0, end
        self._at += size
        return self._buffer[self._at - size : self._at]

    def number(self, format_: str) -> Any:  # Any: int, float or bool
        """Return the next number, in a format of `struct`, little-endian."""
        return struct.unpack(f"<{format_}", self.take(struct.calcsize(f"<{format_}")))[0]

    def text(self) -> str:
        """Return the next string."""
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise ValueError("it has a text that is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:  # Any: JSON values
        """Return the next value; for a list of strings or lists its length, for other lists the maximum."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_number_format(kind))
        inner, count = self.number("I"), self.number("Q")
        _require(count, _MAX_ELEMENTS, "elements of a list")
        _require(depth, _MAX_DEPTH, "lists in lists")
        if inner not in (_STRING, _ARRAY):
            format_ = f"<{_number_format(inner)}"
            numbers = struct.iter_unpack(format_, self.take(struct.calcsize(format_) * count))
            return max((number for (number,) in numbers), default=0)
        for _ in range(count):
            if inner == _ARRAY:
                self.value(inner, depth + 1)
            else:
                # Vocabularies have hundreds of thousands of strings; only the count matters.
                self.take(int.from_bytes(self.take(8), "little"))
        return count


def _number_format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"it has a value of type {kind}, which the format does not know")
    return _NUMBERS[kind]
