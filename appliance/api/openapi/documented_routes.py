"""The documented routes: what they take and return.

They are declared here and not by the handlers, because handlers read bodies themselves, after authorization, and serve
several of these paths by one wildcard: the name of a model may contain slashes. Models get the body of an OpenAI
request unchanged, so its type lists the usual fields; a model may take others.
Source: https://platform.openai.com/docs/api-reference; messages are Anthropic's
(https://docs.anthropic.com/en/api/messages), the rest vLLM's
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from litestar.datastructures import UploadFile
from litestar.params import JSONBody, MultipartBody

from appliance.api.oip import metadata, repository, v1, v2
from appliance.api.openai import PREFIXES, ModelList, ModelObject
from appliance.api.probes import ProbeResponse
from appliance.core import openai_types
from appliance.core.model import MULTIPART_OPERATIONS, OPENAI_PATHS, Operation
from appliance.core.openai_types import Json
from appliance.python_api import types
from appliance.tensors.codec import InferenceRequestBody, InferenceResponseBody

Tag = Literal["OpenAI", "Open Inference Protocol v1", "Open Inference Protocol v2", "Health", "Server"]

_EVENTS = "text/event-stream"
_STREAMED = frozenset(
    {Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE, Operation.TRANSCRIPTION}
)


@dataclass(frozen=True, slots=True)
class DocumentedRoute:
    """One method of one or several paths, with the types of its request and response; None is not JSON."""

    method: Literal["GET", "POST"]
    paths: Sequence[str]
    tag: Tag
    summary: str
    response: Any = None  # Any: types
    request: Any = None  # Any: types
    other_media_type: str | None = None
    """A media type of responses beside JSON."""
    is_body_optional: bool = False
    is_public: bool = False
    is_probe: bool = False
    """503 has the same body as 200."""


def _object(name: str, required: Mapping[str, Any], optional: Mapping[Any, Sequence[str]] = {}) -> Any:  # Any: types
    """Return the type of a JSON object; `optional` has names of fields by their type, and these may be null."""
    more = [(key, type_ | None, None) for type_, keys in optional.items() for key in keys]
    return msgspec.defstruct(name, [*required.items(), *more], module=__name__)


def _request(name: str, required: Mapping[str, Any], optional: Mapping[Any, Sequence[str]] = {}) -> Any:  # Any: types
    return _object(name, required, {**optional, str: ("model", *optional.get(str, ()))})


class Classifications(openai_types.Classifications, kw_only=True):
    """The same, with the type of `usage` that all operations have in the document."""

    usage: types.Usage | None = None  # type: ignore[assignment]  # only for the document


# Texts, token ids, lists of them, or parts with images.
_INPUTS = _request("InputRequest", {"input": str | list[Any]}, {int: ("truncate_prompt_tokens",)})
_AUDIO = _request(
    "AudioForm",
    {"file": UploadFile},
    {str: ("language", "prompt", "response_format"), float: ("temperature",), bool: ("stream",)},
)
_TRANSCRIPTION = _object("Transcription", {"text": str})
# Only edits have a prompt and a mask.
_IMAGE = _request(
    "ImageForm",
    {"image": UploadFile},
    {str: ("prompt", "size", "response_format"), UploadFile: ("mask",), int: ("n",)},
)
_SCORES: Any = list[_object("Score", {"index": int, "score": float}, {str: ("object",)})]  # type: ignore[misc]  # made
_CONVERSATION: dict[Any, Sequence[str]] = {  # Any: types
    str | list[Json]: ("system",),
    list[Json]: ("tools",),
    Json: ("tool_choice",),
}

# The types of an operation's request and response; a response of None is not JSON.
_TYPES: Mapping[Operation, tuple[Any, Any]] = {  # Any: types
    Operation.CHAT_COMPLETION: (types.ChatCompletionRequest, types.ChatCompletion),
    Operation.COMPLETION: (types.CompletionRequest, types.Completion),
    Operation.RESPONSE: (
        _request(
            "ResponseRequest",
            {"input": str | list[Json]},
            {str: ("instructions",), int: ("max_output_tokens",), float: ("temperature", "top_p"), bool: ("stream",)}
            | {list[Json]: ("tools",), str | Json: ("tool_choice",), Json: ("text", "reasoning")},
        ),
        _object(
            "ModelAnswer",
            {"id": str, "object": Literal["response"], "created_at": float, "model": str, "status": str}
            | {"output": list[Json]},
            {Json: ("usage",)},
        ),
    ),
    Operation.MESSAGE: (
        _request(
            "MessageRequest",
            {"messages": list[Json], "max_tokens": int},
            {list[str]: ("stop_sequences",), bool: ("stream",), float: ("temperature", "top_p"), int: ("top_k",)}
            | _CONVERSATION,
        ),
        _object(
            "Message",
            {"id": str, "type": Literal["message"], "role": Literal["assistant"], "model": str}
            | {"content": list[Json], "usage": Json},
            {str: ("stop_reason", "stop_sequence")},
        ),
    ),
    Operation.COUNT_TOKENS: (
        _request("CountTokensRequest", {"messages": list[Json]}, _CONVERSATION),
        _object("InputTokens", {"input_tokens": int}),
    ),
    Operation.TOKENIZE: (
        _request(
            "TokenizeRequest",
            {},
            {str: ("prompt",), list[Json]: ("messages",), bool: ("add_special_tokens", "return_token_strs")},
        ),
        _object("Tokens", {"count": int, "max_model_len": int, "tokens": list[int]}, {list[str]: ("token_strs",)}),
    ),
    Operation.DETOKENIZE: (
        _request("DetokenizeRequest", {"tokens": list[int]}),
        _object("DetokenizedText", {"prompt": str}),
    ),
    Operation.EMBEDDING: (types.EmbeddingRequest, types.Embedding),
    Operation.RERANK: (types.RerankRequest, types.Rerank),
    Operation.SCORE: (
        # One or several queries, and a document for each.
        _request("ScoreRequest", {}, {str | list[str]: ("queries", "documents", "text_1", "text_2")}),
        _object(
            "Scores",
            {"id": str, "object": str, "created": int, "model": str, "data": _SCORES, "usage": types.Usage},
        ),
    ),
    Operation.CLASSIFICATION: (_INPUTS, Classifications),
    Operation.POOLING: (_INPUTS, Json),
    Operation.MODERATION: (_INPUTS, Json),
    Operation.TRANSCRIPTION: (_AUDIO, _TRANSCRIPTION),
    Operation.TRANSLATION: (_AUDIO, _TRANSCRIPTION),
    # Speech is audio.
    Operation.SPEECH: (
        _request(
            "SpeechRequest",
            {"input": str, "voice": str | Json},
            {str: ("response_format", "instructions"), float: ("speed",)},
        ),
        None,
    ),
    Operation.IMAGE: (
        _request("ImageRequest", {"prompt": str}, {int: ("n",), str: ("size", "quality", "response_format")}),
        Json,
    ),
    Operation.IMAGE_EDIT: (_IMAGE, Json),
    Operation.IMAGE_VARIATION: (_IMAGE, Json),
}


def documented_routes() -> Iterator[DocumentedRoute]:
    """Yield all routes."""
    for operation, paths in OPENAI_PATHS.items():
        request, response = _TYPES[operation]
        body = (MultipartBody if operation in MULTIPART_OPERATIONS else JSONBody)[request]
        summary = operation.replace("_", " ").capitalize()
        stream = _EVENTS if operation in _STREAMED else None
        yield DocumentedRoute("POST", _with_prefix(*paths), "OpenAI", summary, response, body, stream)
    yield DocumentedRoute("GET", _with_prefix("/v1/models"), "OpenAI", "List models", ModelList)
    yield DocumentedRoute("GET", _with_prefix("/v1/models/{name}"), "OpenAI", "Get a model", ModelObject)
    for verb in ("predict", "explain"):
        path, summary = f"/v1/models/{{name}}:{verb}", f"{verb.capitalize()} for instances"
        yield DocumentedRoute(
            "POST", [path], "Open Inference Protocol v1", summary, Json, JSONBody[v1.PredictionRequest]
        )
    yield from _oip_v2()
    yield from _health()
    for path, summary, type_ in (
        ("/", "List the routes", Json),
        ("/config", "Get the config without secrets, as YAML", None),
        ("/docs", "Open this document as a page", None),
        ("/schema", "Open this document as a page", None),
        ("/schema/openapi.json", "Get this document", Json),
        ("/metrics", "Get metrics for Prometheus", None),
    ):
        yield DocumentedRoute("GET", [path], "Server", summary, type_)


def _with_prefix(*paths: str) -> Sequence[str]:
    return [prefix + path for prefix in PREFIXES for path in paths]


def _oip_v2() -> Iterator[DocumentedRoute]:
    def get(paths: Sequence[str], summary: str, response: Any, **options: Any) -> DocumentedRoute:  # Any: types
        return DocumentedRoute("GET", paths, "Open Inference Protocol v2", summary, response, **options)

    def post(paths: Sequence[str], summary: str, response: Any, request: Any = None, **options: Any) -> DocumentedRoute:
        body: Any = JSONBody
        body = None if request is None else body[request]
        return DocumentedRoute("POST", paths, "Open Inference Protocol v2", summary, response, body, **options)

    def of_model(ending: str) -> Sequence[str]:
        return [f"/v2/models/{{name}}{version}{ending}" for version in ("", "/versions/{version}")]

    yield get(["/v2"], "Get server metadata", metadata.ServerMetadata)
    for word in ("live", "ready"):
        summary = f"Check whether the server is {word}"
        yield get([f"/v2/health/{word}"], summary, dict[str, bool], is_public=True, is_probe=True)
    yield get(["/v2/models"], "List the names of models", v2.ModelNames)
    yield get(["/v2/models/stats"], "Get statistics of all models", metadata.Statistics)
    yield get(of_model(""), "Get metadata of a model", metadata.ModelMetadata)
    yield get(of_model("/ready"), "Check whether a model is ready", v2.ModelReady, is_probe=True)
    yield get(of_model("/config"), "Get the configuration of a model, as Triton does", metadata.ModelConfiguration)
    yield get(of_model("/stats"), "Get statistics of a model", metadata.Statistics)
    binary = "application/octet-stream"
    yield post(
        of_model("/infer"),
        "Run inference on tensors",
        InferenceResponseBody,
        InferenceRequestBody,
        other_media_type=binary,
    )
    yield post(of_model("/generate"), "Generate text", v2.GenerateResponse, v2.GenerateRequest)
    summary = "Generate text as a stream"
    yield post(of_model("/generate_stream"), summary, None, v2.GenerateRequest, other_media_type=_EVENTS)
    index, summary = list[repository.RepositoryEntry], "List models with their states"
    yield post(["/v2/repository/index"], summary, index, repository.IndexRequest, is_body_optional=True)
    for verb in ("load", "unload"):
        yield post([f"/v2/repository/models/{{name}}/{verb}"], f"{verb.capitalize()} a model", Json)


def _health() -> Iterator[DocumentedRoute]:
    for paths, summary in (
        (("/livez",), "Check whether the server works"),
        (("/readyz", "/health", "/ping"), "Check whether all models are ready"),
        (("/startupz",), "Check whether all models have been ready once"),
    ):
        yield DocumentedRoute("GET", paths, "Health", summary, ProbeResponse, is_public=True, is_probe=True)
