"""Classes of texts and of tokens, by the names of their labels.

Source of the shape: vLLM's ``/classify``, with every label's name beside its probability.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
from pydantic import TypeAdapter

from appliance.core.concurrency import off_loop
from appliance.core.model import ModelRequest, ModelResponse
from appliance.engines.vllm.errors import vendor_faults
from appliance.engines.vllm.pooling.batch import Encoded, TextBatcher
from appliance.engines.vllm.pooling.usage import PoolingUsage, usage_of
from appliance.engines.vllm.request_decoder import decode

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
    from vllm.tasks import PoolingTask


class TextClass(msgspec.Struct):
    """The class of one text: the likeliest label, and the probability of each.

    `probs` has the probabilities in the order of the model's labels.
    """

    index: int
    label: str
    probs: list[float]
    num_classes: int
    probabilities: dict[str, float]


class TokenClass(msgspec.Struct):
    """The class of one token, which is the text from its `start` to before its `end`, in characters.

    Both are None where the client sent token ids.
    """

    token: int
    start: int | None
    end: int | None
    label: str
    probability: float


class TokenClasses(msgspec.Struct):
    """The classes of one text's tokens; special ones, which stand for no text, are left out."""

    index: int
    tokens: list[TokenClass]


class Classifications(msgspec.Struct, tag_field="object", tag="list"):
    """The answer: the classes for each input, in their order."""

    id: str
    created: int
    model: str
    data: list[TextClass] | list[TokenClasses]
    usage: PoolingUsage


class ClassificationEndpoint:
    """Classifies texts, or each of their tokens."""

    def __init__(self, texts: TextBatcher, model: ModelConfig, name: str, task: PoolingTask) -> None:
        from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest

        self._texts = texts
        self._model = model
        self._name = name
        self._task = task
        self._labels = labels_of(model.hf_config.id2label)
        self._request = TypeAdapter(ClassificationCompletionRequest)

    async def __call__(self, call: ModelRequest) -> ModelResponse:
        """Answer one call; see `Answer`."""
        from vllm import PoolingParams

        request: ClassificationCompletionRequest = await off_loop(len(call.body), decode, self._request, call.body)
        pool = PoolingParams(task=self._task, use_activation=request.use_activation)
        with vendor_faults("input"):
            encoded = await self._texts.encode(request.input, request.build_tok_params(self._model), pool)
        answer = Classifications(
            id=f"classify-{uuid4().hex}",
            created=int(time.time()),
            model=self._name,
            data=self._of_tokens(encoded) if self._task == "token_classify" else self._of_texts(encoded),
            usage=usage_of(encoded),
        )
        return ModelResponse(msgspec.json.encode(answer))

    def _of_texts(self, encoded: Sequence[Encoded]) -> list[TextClass]:
        return [self._of_text(index, each.values.tolist()) for index, each in enumerate(encoded)]

    def _of_text(self, index: int, probs: list[float]) -> TextClass:
        named = dict(zip(self._labels, probs, strict=True))
        return TextClass(index, max(named, key=named.__getitem__), probs, len(probs), named)

    def _of_tokens(self, encoded: Sequence[Encoded]) -> list[TokenClasses]:
        return [TokenClasses(index, list(self._tokens(each))) for index, each in enumerate(encoded)]

    def _tokens(self, encoded: Encoded) -> Sequence[TokenClass]:
        spans: Sequence[tuple[int | None, int | None]] = encoded.spans or [(None, None)] * len(encoded.tokens)
        best = encoded.values.argmax(axis=-1).tolist()
        most = encoded.values.max(axis=-1).tolist()
        return [
            TokenClass(token, start, end, self._labels[label], probability)
            for token, (start, end), label, probability in zip(encoded.tokens, spans, best, most, strict=True)
            if start is None or start != end
        ]


def labels_of(names: Mapping[int, str]) -> list[str]:
    """The labels in the order of the model's outputs; those that share a name are told apart by their number."""
    ordered = [names[index] for index in sorted(names)]
    return [name if ordered.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]
