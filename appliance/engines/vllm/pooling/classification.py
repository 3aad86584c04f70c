"""Classification of texts and of tokens, with the names of the labels.

Source of the format: vLLM's ``/classify``, with every label's name beside its probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from pydantic import TypeAdapter

from appliance.core.model import ModelRequest, ModelResponse
from appliance.core.openai_types import Classification, Classifications, TokenClass, new_id, now
from appliance.engines.vllm.pooling.batch import Encoded, TextBatcher, usage_of
from appliance.engines.vllm.request_decoder import decode_request

if TYPE_CHECKING:
    from vllm.entrypoints.pooling.classify.protocol import ClassificationCompletionRequest
    from vllm.tasks import PoolingTask


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
            id=new_id("classify"),
            created=now(),
            model=self._name,
            data=[self._classify(index, output) for index, output in enumerate(outputs)],
            usage=usage_of(outputs),
        )
        return ModelResponse(msgspec.json.encode(response))

    def _classify(self, index: int, output: Encoded) -> Classification:
        if self._task == "token_classify":
            return Classification(index=index, tokens=self._token_classes(output))
        probs: list[float] = output.values.tolist()
        by_label = dict(zip(self._labels, probs, strict=True))
        return Classification(
            index=index,
            label=max(by_label, key=by_label.__getitem__),
            probs=probs,
            num_classes=len(probs),
            probabilities=by_label,
        )

    def _token_classes(self, output: Encoded) -> list[TokenClass]:
        spans: Sequence[tuple[int | None, int | None]] = output.spans or [(None, None)] * len(output.tokens)
        best = output.values.argmax(axis=-1).tolist()
        probabilities = output.values.max(axis=-1).tolist()
        return [
            TokenClass(token=token, start=start, end=end, label=self._labels[label], probability=probability)
            for token, (start, end), label, probability in zip(output.tokens, spans, best, probabilities, strict=True)
            if start is None or start != end
        ]


def label_names(names: Mapping[int, str]) -> list[str]:
    """Return the labels in the order of the model's outputs; labels with the same name get their number."""
    ordered = [names[index] for index in sorted(names)]
    return [name if ordered.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]
