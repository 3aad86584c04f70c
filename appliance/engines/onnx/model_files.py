"""What the files of an encoder say: its length, pooling, labels and activation, as Sentence Transformers has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.config.models import EncoderConfig
from appliance.core.errors import LoadError
from appliance.engines.pooling_protocol import label_names
from appliance.storage import bounded_json

Pooling = Literal["cls", "mean", "last"]
Activation = Literal["none", "sigmoid", "softmax"]

# The keys of `1_Pooling/config.json`; newer files have `pooling_mode` instead.
# Source: https://sbert.net/docs/package_reference/sentence_transformer/models.html#pooling
_POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_MODES: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}

_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}

# Their positions begin after that of the padding.
_OFFSET_POSITIONS = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})

# What tokenizers have in place of no limit is larger.
_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The facts of one encoder's files; `dimensions` is the default length of its embeddings, None is all."""

    max_length: int
    vocabulary: int
    padding: int
    lowercase: bool
    has_matryoshka: bool
    dimensions: int | None
    pooling: Pooling | None
    is_normalized: bool
    labels: Sequence[str]
    activation: Activation

    @classmethod
    def read(cls, directory: Path, config: EncoderConfig, max_model_len: int | None, *, embeds: bool) -> ModelFiles:
        """Read the files of a model in `directory`.

        Raises:
            LoadError: a file cannot be read, or asks for what is not computed here.
        """
        try:
            return cls._read(directory, config, max_model_len, embeds=embeds)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            fault = f"{type(error).__name__}: {error}"
            raise LoadError(f"{directory}: its JSON files are not those of an encoder ({fault})") from error

    @classmethod
    def _read(cls, directory: Path, config: EncoderConfig, max_model_len: int | None, *, embeds: bool) -> ModelFiles:
        model = _read(directory / "config.json")
        transformer = _read(directory / "sentence_bert_config.json", is_optional=True)
        modules = _modules(directory) if embeds else {}
        labels = label_names({int(index): name for index, name in (model.get("id2label") or {}).items()})
        return cls(
            max_length=_max_length(directory, model, transformer, max_model_len),
            vocabulary=int(model["vocab_size"]),
            padding=int(model.get("pad_token_id") or 0),
            lowercase=transformer.get("do_lower_case") is True,
            has_matryoshka=bool(config.dimensions or model.get("is_matryoshka") or model.get("matryoshka_dimensions")),
            dimensions=config.dimensions,
            pooling=(config.pooling or _pooling(directory, modules)) if embeds else None,
            # As for vLLM, embeddings are normalized unless the files have modules without it.
            is_normalized=(not modules or "Normalize" in modules) if config.normalize is None else config.normalize,
            labels=labels,
            activation=_activation(directory, model),
        )


def _read(file: Path, *, is_optional: bool = False) -> dict[str, Any]:  # Any: JSON values
    if is_optional and not file.is_file():
        return {}
    try:
        found = bounded_json.read(file)
    except (OSError, ValueError) as error:
        raise LoadError(f"{file}: cannot be read ({error}); the model's directory must have it") from error
    if not isinstance(found, dict):
        raise LoadError(f"{file}: is not a JSON object; fetch the model again")
    return found


def _modules(directory: Path) -> Mapping[str, str]:
    """Return the directory of each module by its type; {} if the model is not one of Sentence Transformers."""
    file = directory / "modules.json"
    if not file.is_file():
        return {}
    try:
        found = {each["type"].rpartition(".")[2]: each["path"] for each in bounded_json.read(file)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LoadError(f"{file}: cannot be read ({error}); fetch the model again") from error
    if others := found.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise LoadError(
            f"{file}: has the module {min(others)}, which is not in the ONNX file; must be computed by vllm"
        )
    return found


def _pooling(directory: Path, modules: Mapping[str, str]) -> Pooling:
    if "Pooling" not in modules:
        raise LoadError(f"{directory}: does not say how tokens become an embedding; set pooling as its card says")
    # The name comes from a file, and must not lead elsewhere.
    file = directory / Path(modules["Pooling"]).name / "config.json"
    found = _read(file)
    mode = found.get("pooling_mode")
    modes = (
        [mode] if isinstance(mode, str) else [key for key, value in found.items() if "_mode_" in key and value is True]
    )
    pooling = {**_MODES, **_POOLINGS}.get(modes[0]) if len(modes) == 1 else None
    if pooling is None:
        raise LoadError(
            f"{file}: pools as {', '.join(map(str, modes))}; must be cls, mean or last, or be computed by vllm"
        )
    return pooling


def _max_length(
    directory: Path, model: Mapping[str, Any], transformer: Mapping[str, Any], max_model_len: int | None
) -> int:
    positions = int(model.get("max_position_embeddings") or _NO_LIMIT)
    if model.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(model.get("pad_token_id") or 0) + 1
    tokenizer = _read(directory / "tokenizer_config.json", is_optional=True)
    own = transformer.get("max_seq_length") or tokenizer.get("model_max_length") or _NO_LIMIT
    length = min(positions, max_model_len or int(own))
    if max_model_len is not None and max_model_len > length:
        raise LoadError(
            f"engine.max_model_len is {max_model_len}; the model has {positions} positions, so at most that"
        )
    if length >= _NO_LIMIT:
        raise LoadError(f"{directory}: does not say how long a text may be; set engine.max_model_len")
    return length


def _activation(directory: Path, model: Mapping[str, Any]) -> Activation:
    """Return what turns logits into probabilities, as vLLM chooses it."""
    function = (model.get("sentence_transformers") or {}).get("activation_fn")
    function = function or model.get("sbert_ce_default_activation_function")
    if function:
        activation = _ACTIVATIONS.get(str(function).rpartition(".")[2])
        if activation is None:
            raise LoadError(f"{directory / 'config.json'}: has the activation {function}; must be computed by vllm")
        return activation
    is_single = len(model.get("id2label") or ()) == 1 or model.get("problem_type") == "multi_label_classification"
    return "sigmoid" if is_single else "softmax"
