"""Classification of texts and of tokens, with the names of the labels.

Source of the format: vLLM's ``/classify``, with every label's name beside its probability.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
from pydantic import TypeAdapter

from appliance.core.model import ModelRequest, ModelResponse
from appliance.engines.vllm.pooling.batch import Encoded, PoolingUsage, TextBatcher
from appliance.engines.vllm.request_decoder import decode_request

if TYPE_CHECKING:
    from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
    from vllm.tasks import PoolingTask


class TextClass(msgspec.Struct):
    """The class of one text: the likeliest label; `probs` has the probabilities in the order of the labels."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    probabilities: dict[str, float]


class TokenClass(msgspec.Struct):
    """The class of one token, from character `start` to before `end`; both are None for token ids."""

    token: int
    start: int | None
    end: int | None
    label: str
    probability: float


class TokenClasses(msgspec.Struct):
    """The classes of one text's tokens, without special ones, which stand for no text."""

    index: int
    tokens: list[TokenClass]


class Classifications(msgspec.Struct, tag_field="object", tag="list"):
    """The response: the classes for each input, in order."""

    id: str
    created: int
    model: str
    data: list[TextClass] | list[TokenClasses]
    usage: PoolingUsage


class ClassificationEndpoint:
    """Classifies texts, or each of their tokens."""

    def __init__(self, batcher: TextBatcher, labels: Sequence[str], name: str, task: PoolingTask) -> None:
        from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest

        self._batcher = batcher
        self._name = name
        self._task = task
        self._labels = labels
        self._request_type = TypeAdapter(ClassificationCompletionRequest)

    async def __call__(self, request: ModelRequest) -> ModelResponse:
        """Handle one request; see `Handler`."""
        from vllm import PoolingParams

        decoded: ClassificationCompletionRequest = await decode_request(self._request_type, request)
        pooling = PoolingParams(task=self._task, use_activation=decoded.use_activation)
        outputs = await self._batcher.encode(decoded, pooling)
        response = Classifications(
            id=f"classify-{uuid4().hex}",
            created=int(time.time()),
            model=self._name,
            data=(
                [TokenClasses(index, self._token_classes(output)) for index, output in enumerate(outputs)]
                if self._task == "token_classify"
                else [self._text_class(index, output.values.tolist()) for index, output in enumerate(outputs)]
            ),
            usage=PoolingUsage.of(outputs),
        )
        return ModelResponse(msgspec.json.encode(response))

    def _text_class(self, index: int, probs: list[float]) -> TextClass:
        by_label = dict(zip(self._labels, probs, strict=True))
        return TextClass(index, max(by_label, key=by_label.__getitem__), probs, len(probs), by_label)

    def _token_classes(self, output: Encoded) -> list[TokenClass]:
        spans: Sequence[tuple[int | None, int | None]] = output.spans or [(None, None)] * len(output.tokens)
        best = output.values.argmax(axis=-1).tolist()
        probabilities = output.values.max(axis=-1).tolist()
        return [
            TokenClass(token, start, end, self._labels[label], probability)
            for token, (start, end), label, probability in zip(output.tokens, spans, best, probabilities, strict=True)
            if start is None or start != end
        ]


def label_names(names: Mapping[int, str]) -> list[str]:
    """Return the labels in the order of the model's outputs; labels with the same name get their number."""
    ordered = [names[index] for index in sorted(names)]
    return [name if ordered.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]
