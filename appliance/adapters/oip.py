"""A client of the Open Inference Protocol: tensors of text in, tensors of text or numbers out.

Source: v2 is https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md,
v1 is https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from urllib.parse import quote

import msgspec

from appliance.adapters.operations import GeneratedText, TokenCounts
from appliance.adapters.service_client import Headers, ServiceClient
from appliance.config.adapters import OipConfig, OipEmbeddingsConfig, OipRerankConfig, OipTextConfig
from appliance.core.errors import GatewayError
from appliance.core.openai_types import Json

# OpenAI's fields for sampling that a parameter of the protocol can hold: no lists, no mappings.
_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
)

Columns = Mapping[str, Sequence[str]]
"""
Equal numbers of texts by the names of their tensors; with v1, the only column may have the name "", which is none.
"""


class OipClient:
    """One model of a server; `model` is the server's name of it."""

    def __init__(self, config: OipConfig, client: ServiceClient, model: str) -> None:
        self._config = config
        self._client = client
        self._is_v1 = config.version == "v1"
        # The target's URL may end in the version already.
        url, name = client.url(""), quote(model, safe="")
        parts = url.raw_path.rstrip("/").split("/")
        base = "/".join(parts[:-1] if parts[-1] in ("v1", "v2") else parts)
        path = f"/v1/models/{name}:predict" if self._is_v1 else f"/v2/models/{name}/infer"
        self._url = url.with_path(base + path, encoded=True, keep_query=True)

    def tensor_name(self, declared: str | None, default: str) -> str:
        """Return the name of a tensor; "" is none."""
        return declared or ("" if self._is_v1 else default)

    async def infer(self, columns: Columns, output: str | None, parameters: Json, headers: Headers) -> list[Any]:
        """Return one item of the output for each row of the inputs: a text, a number or a vector."""
        body = self._body(columns, output) | ({"parameters": parameters} if parameters else {})
        response = await self._client.post(self._url, msgspec.json.encode(body), headers)
        items = _predictions(response, output) if self._is_v1 else _rows(_tensor(response, output))
        if len(items) != (size := len(next(iter(columns.values())))):
            raise GatewayError(f"The target gave {len(items)} items for {size} texts")
        return items

    def _body(self, columns: Columns, output: str | None) -> Json:
        if "" in columns:
            return {"instances": list(columns[""])}
        if self._is_v1:
            return {"instances": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}
        rest = [1] * (self._config.text_rank - 1)
        inputs = [
            {"name": name, "shape": [len(texts), *rest], "datatype": "BYTES", "data": list(texts)}
            for name, texts in columns.items()
        ]
        return {"inputs": inputs} | ({} if output is None else {"outputs": [{"name": output}]})


def _predictions(response: Any, output: str | None) -> list[Any]:  # Any: JSON values
    predictions = response.get("predictions") if isinstance(response, dict) else None
    if not isinstance(predictions, list):
        raise GatewayError("The target's response has no predictions")
    return [_output(each, output) if isinstance(each, dict) else each for each in predictions]


def _output(prediction: Json, output: str | None) -> Any:  # Any: JSON values
    if output is None and len(prediction) == 1:
        return next(iter(prediction.values()))
    if output not in prediction:
        raise GatewayError(f"The target's predictions have {', '.join(prediction)}, and no {output or 'only one'}")
    return prediction[output]


def _tensor(response: Any, output: str | None) -> Json:  # Any: JSON values
    outputs = response.get("outputs") if isinstance(response, dict) else None
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise GatewayError("The target's response has no outputs")
    found = [each for each in outputs if output in (None, each.get("name"))]
    if len(found) != 1:
        names = ", ".join(str(each.get("name")) for each in outputs)
        raise GatewayError(f"The target's outputs are {names or 'none'}, and not {output or 'one alone'}")
    only: Json = found[0]
    return only


def _rows(tensor: Json) -> list[Any]:  # Any: JSON values
    """Return the items along the first dimension; data may be nested, or one row-major list."""
    flat, shape = _flat(tensor.get("data")), tensor.get("shape")
    is_shape = isinstance(shape, list) and bool(shape) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(shape, list) or not is_shape or prod(shape) != len(flat):
        raise GatewayError(f"The target's output {tensor.get('name')} has the shape {shape} for {len(flat)} values")
    width = prod(shape[1:])
    if width == 1:
        return flat
    return [flat[start : start + width] for start in range(0, len(flat), width)] if width else []


def _flat(data: Any) -> list[Any]:  # Any: JSON values
    if not isinstance(data, list):
        raise GatewayError("The target's output has no data")
    leaves, rest = [], data[::-1]
    while rest:
        item = rest.pop()
        if isinstance(item, list):
            rest.extend(reversed(item))
        else:
            leaves.append(item)
    return leaves


@dataclass(frozen=True, slots=True)
class OipTextService:
    """A model that generates text."""

    client: OipClient
    config: OipTextConfig

    async def generate(self, body: Json, prompt: str, headers: Headers) -> GeneratedText:
        sampling = {name: body[name] for name in _SAMPLING_FIELDS if _is_scalar(body.get(name))}
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        limits = {"max_tokens": limit} if _is_scalar(limit) else {}
        prompts = {self.client.tensor_name(self.config.input, "text_input"): [prompt]}
        output = self.client.tensor_name(self.config.output, "text_output") or None
        (text,) = await self.client.infer(prompts, output, {**self.config.parameters, **sampling, **limits}, headers)
        if not isinstance(text, str):
            raise GatewayError("The target's output is not a text")
        return GeneratedText(text, "stop")

    async def stream(self, body: Json, prompt: str, headers: Headers) -> AsyncGenerator[GeneratedText]:
        # The protocol has no streams.
        yield await self.generate(body, prompt, headers)


def _is_scalar(value: Any) -> bool:  # Any: JSON values
    return isinstance(value, bool | int | float | str)


@dataclass(frozen=True, slots=True)
class OipEmbeddingService:
    """A model that embeds texts."""

    client: OipClient
    config: OipEmbeddingsConfig

    async def embed(self, _body: Json, texts: Sequence[str], headers: Headers) -> tuple[list[list[float]], TokenCounts]:
        name = self.client.tensor_name(self.config.input, "text_input")
        rows = await self.client.infer({name: texts}, self.config.output, {}, headers)
        # A vector of one number comes as that number.
        vectors = [row if isinstance(row, list) else [row] for row in rows]
        return [[_number(each) for each in vector] for vector in vectors], TokenCounts()


@dataclass(frozen=True, slots=True)
class OipRerankService:
    """A model that scores pairs of a query and a document."""

    client: OipClient
    config: OipRerankConfig

    async def score(
        self, _body: Json, query: str, documents: Sequence[str], headers: Headers
    ) -> tuple[list[float], TokenCounts]:
        columns = {self.config.query: [query] * len(documents), self.config.document: documents}
        rows = await self.client.infer(columns, self.config.output, {}, headers)
        return [_number(row[0] if isinstance(row, list) and len(row) == 1 else row) for row in rows], TokenCounts()


def _number(value: Any) -> float:  # Any: JSON values
    if type(value) not in (int, float):
        raise GatewayError("The target's output has values that are not numbers")
    return float(value)
