"""An encoder in ONNX Runtime: texts to tokens, and a batch of tokens to embeddings or probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from appliance.core.errors import CONTEXT_LENGTH_EXCEEDED, LoadError, RequestError
from appliance.engines.frameworks.onnx import create_session
from appliance.engines.onnx.model_files import ModelFiles

Floats = NDArray[np.float32]

Tokens = tuple[Sequence[int], Sequence[int]]
"""The ids of a text's tokens, and for each whether it belongs to the first text of a pair or to the second."""

Text = str | tuple[str, str] | list[int]
"""A text, a pair of texts, or the ids of tokens."""

Read = TypeVar("Read", str, str | tuple[str, str])

# More than a token usually has, and tokens that may differ where a text is cut.
_CHARACTERS_PER_TOKEN, _MARGIN_TOKENS = 12, 64

_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class Encoder:
    """A loaded model; `tokenize` and `compute` block, and each may be called by one thread at a time."""

    def __init__(self, directory: Path, file: Path, files: ModelFiles, threads: int) -> None:
        """
        Raises:
            LoadError: the tokenizer or the model cannot be loaded.
        """
        self.files = files
        self._tokenizer = _load_tokenizer(directory / "tokenizer.json")
        try:
            self._session = create_session(file, threads)
        except Exception as error:
            # ONNX Runtime has an error class for each of its codes.
            raise LoadError(f"{file}: ONNX Runtime cannot load it: {error}; export the model again") from error
        self._inputs = {each.name: _TYPES.get(each.type) for each in self._session.get_inputs()}
        if unknown := [name for name, type_ in self._inputs.items() if name not in _INPUTS or type_ is None]:
            raise LoadError(f"{file}: needs the input {unknown[0]}; must have only {', '.join(_INPUTS)} as integers")
        rank = 2 if files.pooling is None else 3
        found = [each.name for each in self._session.get_outputs() if len(each.shape) == rank]
        if not found:
            kind = "logits of shape (batch, labels)" if files.pooling is None else "vectors of each token"
            raise LoadError(f"{file}: has no output with {kind}; export it for the model's task")
        self._output = found[:1]

    def tokenize(self, texts: Sequence[Text], truncate: int | None, side: str) -> list[Tokens]:
        """Return the tokens of each text, of which `truncate` are kept; None refuses texts that are too long.

        `side` is where they are cut.

        Raises:
            RequestError: a text is too long, or ids are not of the vocabulary.
        """
        self._tokenizer.no_truncation()
        given = [self._shorten(self._lower(text), truncate, side) for text in texts if not isinstance(text, list)]
        if truncate is not None:
            self._tokenizer.enable_truncation(truncate, direction=side)
        encoded = iter(self._tokenizer.encode_batch(given))
        tokens = [
            self._of_ids(text, truncate, side) if isinstance(text, list) else _tokens(next(encoded), truncate)
            for text in texts
        ]
        if (longest := max(len(ids) for ids, _ in tokens)) > (limit := self.files.max_length):
            raise RequestError(
                f"A text has at least {longest} tokens, and the maximum context length of this model is {limit} "
                "tokens; shorten it, or set truncate_prompt_tokens: -1",
                param="input",
                code=CONTEXT_LENGTH_EXCEEDED,
            )
        return tokens

    def tokens_of(self, text: str, *, add_special_tokens: bool) -> tuple[Sequence[int], Sequence[str]]:
        """Return the ids of the tokens of a text of any length, and their strings; by the same thread as `tokenize`."""
        self._tokenizer.no_truncation()
        encoded = self._tokenizer.encode(self._lower(text), add_special_tokens=add_special_tokens)
        return encoded.ids, encoded.tokens

    def text_of(self, ids: list[int]) -> str:
        """Return the text of tokens; raises RequestError if ids are not of the vocabulary."""
        self._require_known(ids, "tokens")
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def compute(self, batch: Sequence[Tokens]) -> Floats:
        """Return the embedding of each text, or its probabilities."""
        shape = (len(batch), max(len(ids) for ids, _ in batch))
        ids = np.full(shape, self.files.padding)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, (own_ids, own_types) in enumerate(batch):
            ids[row, : len(own_ids)] = own_ids
            types[row, : len(own_types)] = own_types
            mask[row, : len(own_ids)] = 1
        positions = np.broadcast_to(np.arange(shape[1]), shape)
        given = dict(zip(_INPUTS, (ids, mask, types, positions), strict=True))
        feeds = {name: given[name].astype(type_, copy=False) for name, type_ in self._inputs.items()}
        (output,) = self._session.run(self._output, feeds)
        return self._activate(output.astype(np.float32, copy=False)) if output.ndim == 2 else self._pool(output, mask)

    def cut(self, vectors: Floats, dimensions: int | None) -> Floats:
        """Return embeddings of the length that a request asks for.

        Raises:
            RequestError: the model has no embeddings of this length.
        """
        size, wanted = vectors.shape[1], dimensions or self.files.dimensions or vectors.shape[1]
        if wanted == size:
            return vectors
        if not self.files.has_matryoshka or wanted > size:
            why = (
                "at most that many can be asked for"
                if self.files.has_matryoshka
                else "it was not trained to have them cut"
            )
            raise RequestError(
                f"dimensions is {wanted}; this model's embeddings have {size} numbers, and {why}", param="dimensions"
            )
        return self._normalize(vectors[:, :wanted])

    def _lower(self, text: Read) -> Read:
        if not self.files.lowercase:
            return text
        return text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())

    def _of_ids(self, ids: list[int], truncate: int | None, side: str) -> Tokens:
        self._require_known(ids, "input")
        kept = ids if truncate is None else ids[-truncate:] if side == "left" else ids[:truncate]
        return kept, [0] * len(kept)

    def _shorten(self, text: Read, truncate: int | None, side: str) -> Read:
        """Return the beginning of a text that alone has more tokens than are taken, else the text.

        Either is refused, or cut at its end, alike; but the others would wait while all of it is read.
        """
        if not isinstance(text, str):
            return self._shorten(text[0], truncate, side), self._shorten(text[1], truncate, side)
        limit = self.files.max_length if truncate is None else truncate
        size = (limit + _MARGIN_TOKENS) * _CHARACTERS_PER_TOKEN
        if (truncate is not None and side == "left") or len(text) <= 2 * size:
            return text
        beginning = text[:size]
        tokens = self._tokenizer.encode(beginning, add_special_tokens=False).ids
        return beginning if len(tokens) >= limit + _MARGIN_TOKENS else text

    def _require_known(self, ids: list[int], param: str) -> None:
        if any(not 0 <= each < self.files.vocabulary for each in ids):
            raise RequestError(f"{param} has ids that are not of the {self.files.vocabulary} tokens", param=param)

    def _pool(self, hidden: NDArray[Any], mask: NDArray[np.int64]) -> Floats:  # Any: float16 or float32
        lengths = mask.sum(axis=1)
        match self.files.pooling:
            case "cls":
                vectors = hidden[:, 0]
            case "last":
                vectors = hidden[np.arange(len(hidden)), lengths - 1]
            case _:
                # (batch, tokens, dimensions) with weights (batch, 1, tokens), as one product of matrices each.
                weights = (mask / lengths[:, None])[:, None].astype(np.float32)
                vectors = np.matmul(weights, hidden.astype(np.float32, copy=False))[:, 0]
        return self._normalize(vectors.astype(np.float32, copy=False))

    def _normalize(self, vectors: Floats) -> Floats:
        if not self.files.is_normalized:
            return vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        normalized: Floats = vectors / np.maximum(lengths, 1e-12)
        return normalized

    def _activate(self, logits: Floats) -> Floats:
        if self.files.activation == "none":
            return logits
        if self.files.activation == "sigmoid":
            return (1 / (1 + np.exp(-logits))).astype(np.float32)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
        return probabilities


def _load_tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise LoadError(
            f"{file}: is missing; add it, as with: AutoTokenizer.from_pretrained(NAME).save_pretrained(DIRECTORY)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        # The library raises nothing narrower.
        raise LoadError(f"{file}: cannot be read ({error}); fetch the model again") from error
    # Batches are padded here, to the longest of their texts.
    tokenizer.no_padding()
    return tokenizer


def _tokens(encoding: Any, truncate: int | None) -> Tokens:  # Any: the library's Encoding
    # The library does not truncate to fewer tokens than the special ones.
    return encoding.ids[:truncate], encoding.type_ids[:truncate]
