"""How long a text a model takes, by its `config.json` (``_get_and_verify_max_len`` of vLLM 0.32)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Where models say it (``derive_max_model_len_and_key``); the smallest counts.
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)

# Ways to stretch positions of which the length that is written knows already.
_COUNTED = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})

# A thousand times as much as any known model has.
_LARGEST_FACTOR = 2**20


def longest_text(kind: str, text: Mapping[str, Any]) -> int | None:  # Any: JSON values
    """Tokens of the longest text, with positions stretched as the config says; None where it does not say."""
    written = min((text[key] for key in _LENGTHS if isinstance(text.get(key), int)), default=None)
    if written is None or "gemma3" in kind:
        return written
    stretched = [each.get("factor") for each in _ropes(text) if _type(each) not in _COUNTED]
    factor = next((each for each in reversed(stretched) if each is not None), 1)
    if type(factor) not in (int, float) or not 0 < factor < _LARGEST_FACTOR:
        raise ValueError(f"the factor of rope_scaling must be a number between 0 and {_LARGEST_FACTOR}")
    return int(written * factor)


def usual_text(kind: str, text: Mapping[str, Any]) -> int | None:  # Any: JSON values
    """Tokens that vLLM allows a text where nobody says; None as above."""
    original = text.get("original_max_position_embeddings")
    # What it was made for, before it was stretched at the cost of short texts.
    if isinstance(original, int) and any(_type(each) == "longrope" for each in _ropes(text)):
        return original
    return longest_text(kind, text)


def _ropes(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:  # Any: likewise
    """How positions are encoded: once, or for each type of layer."""
    said = text.get("rope_parameters") or text.get("rope_scaling") or {}
    inner = [each for each in said.values() if isinstance(each, Mapping)]
    yield from inner or [said]


def _type(rope: Mapping[str, Any]) -> str:  # Any: likewise
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    return "longrope" if kind == "su" else kind
