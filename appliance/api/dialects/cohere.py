"""Cohere's embeddings; its rankings have the paths and the format of OpenAI's routes.

Source: https://docs.cohere.com/reference/embed and https://docs.cohere.com/v1/reference/embed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, post
from litestar.handlers import BaseRouteHandler

from appliance.api import PROTOCOL
from appliance.api.dialects import embeddings
from appliance.api.disconnect import AnyRequest
from appliance.api.model_client import ModelClient, truncation
from appliance.core.errors import RequestError
from appliance.core.model import Operation
from appliance.core.openai_types import Embeddings, Json, Usage, encode_vector, new_id
from appliance.models.model_status import ModelStatus

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]

_CONVERSIONS: Mapping[EmbeddingType, Callable[[embeddings.Vector], Any]] = {  # Any: what msgspec writes
    "float": list,
    "int8": embeddings.int8,
    "uint8": embeddings.uint8,
    "binary": embeddings.binary,
    "ubinary": embeddings.ubinary,
    "base64": encode_vector,
}

_SIDES: Mapping[str, str | None] = {"NONE": None, "START": "left", "END": "right"}

# Names of the same prompt in the files of Sentence Transformers' models, most specific first.
_PROMPTS: Mapping[str, Sequence[str]] = {
    "search_query": ("search_query", "query"),
    "search_document": ("search_document", "document", "passage"),
}


class ImageUrl(msgspec.Struct):
    """An image as a data URI."""

    url: str


class Part(msgspec.Struct):
    """A part of an input: a text or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Input(msgspec.Struct):
    """An input of several parts, which get one embedding."""

    content: list[Part]


class EmbedRequest(msgspec.Struct):
    """The body of a request: exactly one of `texts`, `images` and `inputs`."""

    model: str | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[Input] | None = None
    input_type: str | None = None
    """What the embeddings are for; the model's own prompt for it, if it has one, is put before each text."""
    embedding_types: list[EmbeddingType] | None = None
    truncate: Literal["NONE", "START", "END"] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    output_dimension: Annotated[int, msgspec.Meta(ge=1)] | None = None


class EmbedResponse(msgspec.Struct):
    """The embeddings by type; version 1 has a list of numbers for each text instead, unless types are requested."""

    id: str
    response_type: Literal["embeddings_floats", "embeddings_by_type"]
    embeddings: list[list[float]] | Json
    texts: list[str]
    meta: Json


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return `/v2/embed` and `/v1/embed`."""

    @post(["/v1/embed", "/v2/embed"], status_code=200, opt={PROTOCOL: "cohere"})
    async def embed(request: AnyRequest) -> Response[bytes]:
        body = await client.read(request, EmbedRequest)
        name, status = client.find(request, body.model)
        version = request.scope["path"][2]
        inner = {**_inputs(body, status), **_options(body, status)}
        count = len(inner.get("input") or inner["messages"])
        return await client.answer(
            request,
            name,
            Operation.EMBEDDING,
            inner,
            Embeddings,
            lambda found: _response(body, version, embeddings.vectors(found, count), found.usage),
        )

    return [embed]


def _inputs(body: EmbedRequest, status: ModelStatus) -> Json:
    """Return the fields of the OpenAI request with all inputs: texts, or conversations if there are images."""
    given = {"texts": body.texts, "images": body.images, "inputs": body.inputs}
    filled = [key for key, value in given.items() if value]
    if len(filled) != 1:
        raise RequestError(f"There must be one of texts, images and inputs; there are {', '.join(filled) or 'none'}")
    prompts = embeddings.prompts(status)
    names = _PROMPTS.get(body.input_type or "", (body.input_type,))
    prompt = next((prompts[name] for name in names if name in prompts), "")
    if body.images:
        inputs = [Input([Part("image_url", image_url=ImageUrl(url))]) for url in body.images]
    else:
        inputs = body.inputs or [Input([Part("text", text)]) for text in body.texts or ()]
    for index, each in enumerate(inputs):
        for part in each.content:
            if getattr(part, part.type) is None:
                raise RequestError(f"inputs[{index}] has a part without its {part.type}", param="inputs")
    if all(part.type == "text" for each in inputs for part in each.content):
        return {"input": [prompt + "\n".join(part.text or "" for part in each.content) for each in inputs]}
    system = [{"role": "system", "content": prompt}] if prompt else []
    return {"messages": [[*system, {"role": "user", "content": _parts(each)}] for each in inputs]}


def _parts(each: Input) -> Sequence[Json]:
    return [{"type": part.type, part.type: msgspec.to_builtins(getattr(part, part.type))} for part in each.content]


def _options(body: EmbedRequest, status: ModelStatus) -> Json:
    options = {} if body.output_dimension is None else {"dimensions": body.output_dimension}
    if body.truncate == "NONE" and body.max_tokens is not None:
        raise RequestError("max_tokens needs truncate START or END; with NONE nothing is cut", param="max_tokens")
    is_explicit = body.truncate is not None or body.max_tokens is not None
    cut = truncation(status, _SIDES[body.truncate or "END"], is_explicit=is_explicit)
    return {**options, **cut, **({"truncate_prompt_tokens": body.max_tokens} if body.max_tokens else {})}


def _response(
    body: EmbedRequest, version: str, vectors: Sequence[embeddings.Vector], usage: Usage | None
) -> EmbedResponse:
    tokens = (usage.prompt_tokens if usage else None) or 0
    meta = {"api_version": {"version": version}, "billed_units": {"input_tokens": tokens}}
    texts = body.texts or []
    if version == "1" and not body.embedding_types:
        return EmbedResponse(new_id("embd"), "embeddings_floats", list(map(list, vectors)), texts, meta)
    types: list[EmbeddingType] = body.embedding_types or ["float"]
    by_type: Json = {kind: [_CONVERSIONS[kind](vector) for vector in vectors] for kind in types}
    return EmbedResponse(new_id("embd"), "embeddings_by_type", by_type, texts, meta)
