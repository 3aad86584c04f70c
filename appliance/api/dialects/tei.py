"""Hugging Face's Text Embeddings Inference: embeddings, similarities, rankings and predictions.

Its servers have one model, so a request names none; here the URL can have a parameter `model`.

Source: https://github.com/huggingface/text-embeddings-inference, router/src/http.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from litestar import Response, get, post
from litestar.handlers import BaseRouteHandler

from appliance.api import PROTOCOL
from appliance.api.dialects import embeddings
from appliance.api.disconnect import AnyRequest
from appliance.api.error_responses import use_format
from appliance.api.model_client import ModelClient, truncation
from appliance.config.models import EncoderConfig
from appliance.core.concurrency import off_loop
from appliance.core.distribution import version
from appliance.core.errors import GatewayError, RequestError, UnsupportedOperationError
from appliance.core.model import Operation
from appliance.core.openai_types import Classification, Classifications, Embeddings, Json, Rerank
from appliance.models.model_status import ModelStatus
from appliance.tensors.codec import decode

_OPT = {PROTOCOL: "tei"}

_Inputs = str | list[str | int | list[int]]


class _Request(msgspec.Struct, kw_only=True):
    model: str | None = None
    """The model here; the protocol has none."""
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"

    def cut(self, status: ModelStatus) -> Json:
        """Return the fields that cut long texts; as there, they are cut unless the client refuses it."""
        side = None if self.truncate is False else self.truncation_direction.lower()
        return truncation(status, side, is_explicit=self.truncate is not None)


class TokenEmbedRequest(_Request, kw_only=True):
    """A request for the embeddings of tokens, or for sparse ones: a text, token ids, or a list of either."""

    inputs: _Inputs
    prompt_name: str | None = None
    """Name of a prompt in the model's files, which is put before each text."""

    def openai(self, status: ModelStatus) -> Json:
        """Return the fields of the OpenAI request."""
        inputs: list[Any] = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        if not inputs:
            raise RequestError("inputs is empty; it must be a text, token ids, or a list of either", param="inputs")
        if all(isinstance(each, int) for each in inputs):
            inputs = [inputs]
        if any(isinstance(each, int) for each in inputs):
            raise RequestError("inputs has numbers beside texts; a list of numbers is one text", param="inputs")
        prompts = embeddings.prompts(status)
        if self.prompt_name is not None and self.prompt_name not in prompts:
            raise RequestError(
                f"This model has no prompt {self.prompt_name[:80]!r}; its files have: {', '.join(prompts) or 'none'}",
                param="prompt_name",
            )
        prompt = prompts.get(self.prompt_name or "", "")
        return {"input": [prompt + each if isinstance(each, str) else each for each in inputs], **self.cut(status)}


class EmbedRequest(TokenEmbedRequest, kw_only=True):
    """A request for embeddings: a text, token ids, or a list of either."""

    normalize: bool = True
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def openai(self, status: ModelStatus) -> Json:
        fields = super().openai(status)
        if not self.normalize:
            fields["use_activation"] = False
        return fields if self.dimensions is None else {**fields, "dimensions": self.dimensions}


class Similarity(msgspec.Struct):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: Annotated[list[str], msgspec.Meta(min_length=1)]


class SimilarityParameters(_Request, kw_only=True):
    """How the sentences are embedded."""

    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct):
    """A request for the cosines of sentences with another one."""

    inputs: Similarity
    model: str | None = None
    parameters: SimilarityParameters | None = None


class RerankRequest(_Request, kw_only=True):
    """A request to rank texts for a query."""

    query: str
    texts: Annotated[list[str], msgspec.Meta(min_length=1)]
    raw_scores: bool = False
    return_text: bool = False


class PredictRequest(_Request, kw_only=True):
    """A request to classify a text, or a list of lists of one text each."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False


class Rank(msgspec.Struct, omit_defaults=True):
    """The relevance of the text at `index`."""

    index: int
    score: float
    text: str | None = None


class Prediction(msgspec.Struct):
    """The probability of a label."""

    score: float
    label: str


class SparseValue(msgspec.Struct):
    """A number that is not 0, at an index of the vocabulary."""

    index: int
    value: float


class Info(TypedDict, total=False):
    """The model, with the limits of its requests."""

    model_id: str
    served_model_name: str
    model_sha: str | None
    model_type: Json
    max_input_length: int | None
    max_client_batch_size: int
    auto_truncate: bool
    version: str


class _PooledTokens(msgspec.Struct):
    data: list[list[float]]
    index: int = 0


class _Pooling(msgspec.Struct):
    data: list[_PooledTokens]


Body = Any  # Any: of the route's type
Handle = Callable[[ModelClient, AnyRequest, Body], Awaitable[Response[bytes]]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route: the type of its requests, and their translation."""

    type: type[Any]  # Any: one of the requests
    handle: Handle


async def _embed(client: ModelClient, request: AnyRequest, body: EmbedRequest) -> Response[bytes]:
    name, status = client.find(request, body.model)
    fields = body.openai(status)

    def translate(found: Embeddings) -> Sequence[embeddings.Vector]:
        vectors = embeddings.vectors(found, len(fields["input"]))
        return list(map(embeddings.normalized, vectors)) if body.normalize else vectors

    return await client.answer(request, name, Operation.EMBEDDING, fields, Embeddings, translate)


async def _embed_all(client: ModelClient, request: AnyRequest, body: TokenEmbedRequest) -> Response[bytes]:
    name, status = client.find(request, body.model)
    if (task := status.model.describe().get("task")) is not None:
        # An encoder's engine computes for its task alone.
        raise UnsupportedOperationError(
            f"The model {name!r} has the task {task} for whole texts, and none for their tokens"
        )
    fields = {**body.openai(status), "task": "token_embed"}

    def translate(found: _Pooling) -> list[list[list[float]]]:
        return [each.data for each in sorted(found.data, key=lambda each: each.index)]

    return await client.answer(request, name, Operation.POOLING, fields, _Pooling, translate)


async def _embed_sparse(client: ModelClient, request: AnyRequest, body: TokenEmbedRequest) -> Response[bytes]:
    name, status = client.find(request, body.model)
    if not status.model.describe().get("sparse"):
        raise UnsupportedOperationError(f"The model {name!r} has no sparse embeddings; /embed gives its dense ones")
    fields = body.openai(status)

    def translate(found: Embeddings) -> list[list[SparseValue]]:
        return [
            [SparseValue(index, value) for index, value in enumerate(vector) if value]
            for vector in embeddings.vectors(found, len(fields["input"]))
        ]

    return await client.answer(request, name, Operation.EMBEDDING, fields, Embeddings, translate)


async def _similarity(client: ModelClient, request: AnyRequest, body: SimilarityRequest) -> Response[bytes]:
    parameters = body.parameters or SimilarityParameters()
    name, status = client.find(request, body.model or parameters.model)
    fields = EmbedRequest(
        inputs=[body.inputs.source_sentence, *body.inputs.sentences],
        prompt_name=parameters.prompt_name,
        truncate=parameters.truncate,
        truncation_direction=parameters.truncation_direction,
    ).openai(status)

    def translate(found: Embeddings) -> list[float]:
        source, *others = map(embeddings.normalized, embeddings.vectors(found, len(fields["input"])))
        return [sum(a * b for a, b in zip(source, other, strict=True)) for other in others]

    return await client.answer(request, name, Operation.EMBEDDING, fields, Embeddings, translate)


async def _rerank(client: ModelClient, request: AnyRequest, body: RerankRequest) -> Response[bytes]:
    name, status = client.find(request, body.model)
    fields = {"query": body.query, "documents": body.texts, **body.cut(status), **_activation(body.raw_scores)}

    def translate(found: Rerank) -> list[Rank]:
        ranks = sorted(found.results, key=lambda each: each.relevance_score, reverse=True)
        if any(each.index not in range(len(body.texts)) for each in ranks):
            raise GatewayError("The model ranked a text that is not there")
        texts = body.texts if body.return_text else [None] * len(body.texts)
        return [Rank(each.index, each.relevance_score, texts[each.index]) for each in ranks]

    return await client.answer(request, name, Operation.RERANK, fields, Rerank, translate)


async def _predict(client: ModelClient, request: AnyRequest, body: PredictRequest) -> Response[bytes]:
    name, status = client.find(request, body.model)
    is_batch = isinstance(body.inputs, list) and any(isinstance(each, list) for each in body.inputs)
    groups: list[Any] = list(body.inputs) if is_batch else [body.inputs]
    texts = [each if isinstance(each, list) else [each] for each in groups]
    if not texts or any(len(each) != 1 for each in texts):
        raise RequestError(
            "inputs must be a text, or a list of lists of one text each; pairs are ranked by /rerank", param="inputs"
        )
    fields = {"input": [text for (text,) in texts], **body.cut(status), **_activation(body.raw_scores)}
    labels = status.model.describe().get("labels", ())

    def translate(found: Classifications) -> Any:  # Any: predictions of a text, or of each
        if len(found.data) != len(texts):
            raise GatewayError(f"The model classified {len(found.data)} texts of {len(texts)}")
        rows = [_predictions(each, labels) for each in sorted(found.data, key=lambda each: each.index)]
        return rows if is_batch else rows[0]

    return await client.answer(request, name, Operation.CLASSIFICATION, fields, Classifications, translate)


def _activation(raw_scores: bool) -> Json:
    return {"use_activation": False} if raw_scores else {}


def _predictions(each: Classification, labels: Sequence[str]) -> list[Prediction]:
    """Return all labels of a text, the likeliest first; labels without names have those of transformers."""
    if isinstance(each.probabilities, dict):
        found = [Prediction(score, label) for label, score in each.probabilities.items()]
    elif isinstance(each.probs, list):
        names = labels if len(labels) == len(each.probs) else [f"LABEL_{index}" for index in range(len(each.probs))]
        found = [Prediction(score, label) for label, score in zip(names, each.probs, strict=True)]
    else:
        raise UnsupportedOperationError("The model labels tokens, and not texts; /classify gives its labels")
    return sorted(found, key=lambda prediction: prediction.score, reverse=True)


ROUTES = {
    "/embed": Route(EmbedRequest, _embed),
    "/embed_all": Route(TokenEmbedRequest, _embed_all),
    "/embed_sparse": Route(TokenEmbedRequest, _embed_sparse),
    "/similarity": Route(SimilarityRequest, _similarity),
    "/predict": Route(PredictRequest, _predict),
}
"""By path; `/rerank` is among OpenAI's routes."""

_RERANK = Route(RerankRequest, _rerank)


class Shape(msgspec.Struct):
    """The fields that tell the requests apart where one path takes all."""

    inputs: Any = None  # Any: looked at, not read
    texts: Any = None  # Any: as above
    model: str | None = None


async def answer_any(client: ModelClient, request: AnyRequest, body: bytes) -> Response[bytes]:
    """Answer a request whose body decides what it asks for, as clients send it to the root of a server."""
    use_format(request, "tei")
    shape = await off_loop(len(body), decode, body, Shape)
    _, status = client.find(request, shape.model)
    if shape.texts is not None:
        route = _RERANK
    elif isinstance(shape.inputs, dict):
        route = ROUTES["/similarity"]
    else:
        route = ROUTES["/embed" if Operation.EMBEDDING in status.model.operations else "/predict"]
    return await route.handle(client, request, await off_loop(len(body), decode, body, route.type))


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return the routes, among them `/` for all requests."""

    def declare(path: str, route: Route) -> BaseRouteHandler:
        @post(path, status_code=200, opt=_OPT)
        async def answer(request: AnyRequest) -> Response[bytes]:
            body = await client.read(request, route.type)
            return await route.handle(client, request, body)

        return answer

    @post("/", status_code=200, opt=_OPT)
    async def answer_root(request: AnyRequest) -> Response[bytes]:
        use_format(request, "tei")
        return await answer_any(client, request, await client.read_bytes(request))

    @get("/info", opt=_OPT)
    async def show_info(request: AnyRequest) -> Info:
        return _info(*client.find(request, None))

    return [*(declare(path, route) for path, route in ROUTES.items()), answer_root, show_info]


def _info(name: str, status: ModelStatus) -> Info:
    facts, config = status.model.describe(), status.config
    labels = {str(index): label for index, label in enumerate(facts.get("labels", ()))}
    classes = {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
    pooling = config.pooling if isinstance(config, EncoderConfig) else None
    types: Json = {"embed": {"embedding": {"pooling": pooling}}, "rerank": {"reranker": classes}}
    return {
        "model_id": name,
        "served_model_name": name,
        "model_sha": None,
        "model_type": types.get(facts.get("task", ""), {"classifier": classes} if labels else {}),
        "max_input_length": facts.get("max_model_len"),
        "max_client_batch_size": config.limits.inputs_per_request,
        "auto_truncate": isinstance(config, EncoderConfig),
        "version": version(),
    }
