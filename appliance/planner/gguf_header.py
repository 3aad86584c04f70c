"""What a GGUF file says of its model, read from its beginning alone.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from appliance.core.errors import ArtifactCorruptError
from appliance.planner.safetensors_header import require_count
from appliance.planner.tensor_info import TensorInfo
from appliance.storage.remote_reader import Range, RemoteReader

_BLOCK = 1 << 20
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, str] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}

# What is read before the weights, most of it a vocabulary: real files have 20 MB with 300,000 words.
_MOST_BYTES = 256 * 1024 * 1024
_MOST_ELEMENTS = 4_000_000
_MOST_VALUES = 65_536
_MOST_DEPTH = 4
_MOST_DIMENSIONS = 8

# Keys of GGUF, after the architecture's name, as a `config.json` has them.
_KEYS: Mapping[str, str] = {
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

_REQUIRED = ("block_count", "embedding_length", "attention.head_count")

# GGUF's names of tensors that a layer's cut is known by, as checkpoints have them; the rest keep theirs.
_NAMES: Mapping[str, str] = {
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


def read_gguf(peek: RemoteReader, name: str) -> tuple[Mapping[str, Any], list[TensorInfo], int]:  # Any: JSON values
    """A `config.json` of the model, its tensors as the conversion writes them, and how many bytes were read.

    Raises:
        ArtifactCorruptError: it is no GGUF file.
    """
    cursor = _Cursor(peek, name)
    try:
        if cursor.take(4) != _MAGIC:
            raise ArtifactCorruptError(f"{peek.place}: {name} is not a GGUF file, whatever its name says")
        _require_version(peek, name, cursor.number("<I"))
        tensor_count, value_count = cursor.number("<Q"), cursor.number("<Q")
        require_count(peek, name, tensor_count)
        _require(value_count, _MOST_VALUES, "values")
        said = {cursor.text(): cursor.value(cursor.number("<I")) for _ in range(value_count)}
        tensors = [_tensor(cursor) for _ in range(tensor_count)]
        is_tied = not any(each.name == "lm_head.weight" for each in tensors)
        return _config(said, is_tied), tensors, cursor.read_bytes
    except (struct.error, ValueError) as error:
        raise ArtifactCorruptError(f"{peek.place}: {name} is not a whole GGUF file ({error})") from error


def _require_version(peek: RemoteReader, name: str, version: int) -> None:
    if version not in _VERSIONS:
        raise ArtifactCorruptError(
            f"{peek.place}: GGUF version {version} is not known, which {name} has; must be one of {_VERSIONS}"
        )


def _config(said: Mapping[str, Any], is_tied: bool) -> Mapping[str, Any]:  # Any: JSON values
    kind = str(said.get("general.architecture", ""))
    config = {ours: said[f"{kind}.{theirs}"] for theirs, ours in _KEYS.items() if f"{kind}.{theirs}" in said}
    for key in _REQUIRED:
        value = said.get(f"{kind}.{key}")
        if type(value) is not int or value < 1:
            fault = f"has no {kind}.{key}" if value is None else f"{kind}.{key} is {str(value)[:60]!r}"
            raise ValueError(f"{fault}; must be a whole number of at least 1")
    config.setdefault("vocab_size", said.get("tokenizer.ggml.tokens", 0))
    return {**config, "model_type": kind, "tie_word_embeddings": is_tied, "dtype": "bfloat16"}


def _tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.text()
    dimensions = cursor.number("<I")
    _require(dimensions, _MOST_DIMENSIONS, f"dimensions of {name}")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    cursor.take(4 + 8)
    parts = name.split(".")
    stem = ".".join(parts[2:-1]) if parts[0] == "blk" else ".".join(parts[:-1])
    prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    # Sizes are written innermost first.
    return TensorInfo(f"{prefix}{_NAMES.get(stem, stem)}.{parts[-1]}", "BF16", shape[::-1])


def _require(count: int, most: int, what: str) -> None:
    if count > most:
        raise ValueError(f"it has {count} {what}; must be at most {most}")


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of type {kind}, which the format does not know")
    return _SCALARS[kind]


class _Cursor:
    """Reads on from the beginning of a file, a megabyte at a time."""

    def __init__(self, peek: RemoteReader, name: str) -> None:
        self._peek, self._name, self._held, self._at = peek, name, b"", 0
        self.read_bytes = 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        _require(self.read_bytes + size, _MOST_BYTES, "bytes before its weights")
        while len(self._held) - self._at < size:
            end = min(self.read_bytes + max(_BLOCK, size), self._peek.files[self._name])
            if end == self.read_bytes:
                raise struct.error("it ends early")
            self._held = self._held[self._at :] + self._peek.read([Range(self._name, self.read_bytes, end)])[0]
            self._at, self.read_bytes = 0, end
        self._at += size
        return self._held[self._at - size : self._at]

    def number(self, form: str) -> Any:  # Any: a number, as struct has it
        """The next number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """The next text."""
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError as error:
            raise ValueError("it has a text that is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:  # Any: JSON values
        """The next value; of a list of texts only its length, of other lists the largest."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_form(kind))
        inner, count = self.number("<I"), self.number("<Q")
        _require(count, _MOST_ELEMENTS, "elements of a list")
        _require(depth, _MOST_DEPTH, "lists in lists")
        if inner == _STRING:
            # A vocabulary has hundreds of thousands: only their number is wanted.
            for _ in range(count):
                self.take(int.from_bytes(self.take(8), "little"))
            return count
        if inner == _ARRAY:
            for _ in range(count):
                self.value(inner, depth + 1)
            return count
        form = _form(inner)
        raw = self.take(struct.calcsize(form) * count)
        numbers = [value for (value,) in struct.iter_unpack(form, raw)]
        return max(numbers, default=0)
