"""The documented routes: what they take and return.

They are declared here and not by the handlers, because handlers read bodies themselves, after authorization, and serve
several of these paths by one wildcard: the name of a model may contain slashes. Models get the body of an OpenAI
request unchanged, so its type lists the usual fields; a model may take others.
Source: https://platform.openai.com/docs/api-reference; messages are Anthropic's
(https://docs.anthropic.com/en/api/messages), the rest vLLM's
(https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal

import msgspec
from litestar import route
from litestar.datastructures import UploadFile
from litestar.enums import HttpMethod
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import JSONBody, MultipartBody

from appliance.api import batches, files
from appliance.api.dialects import cohere, mistral, ollama, ollama_requests, tei, vllm_server
from appliance.api.oip import metadata, v1, v2
from appliance.api.openai import PREFIXES, ModelList, ModelObject
from appliance.api.probes import ProbeResponse
from appliance.batches.objects import Batch, FileObject
from appliance.core import openai_types
from appliance.core.model import COMPACTION_PATH, MULTIPART_OPERATIONS, OPENAI_PATHS, Operation
from appliance.core.openai_types import Json
from appliance.python_api import types
from appliance.tensors.codec import InferenceRequestBody, InferenceResponseBody

Routes = Iterator[tuple[str, BaseRouteHandler]]

_EVENTS = "text/event-stream"

# A variable as its parameter is no type to the type checker.
_JSON_BODY: Any = JSONBody
_STREAMED = frozenset(
    {Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE, Operation.TRANSCRIPTION}
)


def _object(name: str, required: Mapping[str, Any], optional: Mapping[Any, Sequence[str]] = {}) -> Any:  # Any: types
    """Return the type of a JSON object; `optional` has names of fields by their type, and these may be null."""
    more = [(key, type_ | None, None) for type_, keys in optional.items() for key in keys]
    return msgspec.defstruct(name, [*required.items(), *more], module=__name__)


def _request(name: str, required: Mapping[str, Any], optional: Mapping[Any, Sequence[str]] = {}) -> Any:  # Any: types
    return _object(name, required, {**optional, str: ("model", *optional.get(str, ()))})


class Classifications(openai_types.Classifications, kw_only=True):
    """The same, with the type of `usage` that all operations have in the document."""

    usage: types.Usage | None = None  # type: ignore[assignment]  # only for the document


class FileForm(msgspec.Struct):
    """An uploaded file."""

    file: UploadFile
    purpose: Literal["batch"]


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

_RESPONSE = _object(
    "ModelAnswer",
    {"id": str, "object": Literal["response"], "created_at": float, "model": str, "status": str}
    | {"output": list[Json], "store": bool},
    {Json: ("usage",)},
)
_COMPACTION_REQUEST = _object(
    "CompactionRequest", {"model": str}, {str | list[Json]: ("input",), str: ("instructions", "previous_response_id")}
)
_COMPACTION = _object(
    "Compaction",
    {"id": str, "object": Literal["response.compaction"], "created_at": int, "output": list[Json]},
    {Json: ("usage",)},
)
_STORED_CONVERSATION = _object(
    "StoredConversation",
    {"id": str, "object": Literal["conversation"], "created_at": int, "metadata": dict[str, str]},
)
_DELETED = _object("Deleted", {"id": str, "object": str, "deleted": bool})
_ITEMS = _object("Items", {"object": Literal["list"], "data": list[Json], "has_more": bool})

# The types of an operation's request and response; a response of None is not JSON.
_TYPES: Mapping[Operation, tuple[Any, Any]] = {  # Any: types
    Operation.CHAT_COMPLETION: (types.ChatCompletionRequest, types.ChatCompletion),
    Operation.COMPLETION: (types.CompletionRequest, types.Completion),
    Operation.RESPONSE: (
        _request(
            "ResponseRequest",
            {"input": str | list[Json]},
            {str: ("instructions", "previous_response_id"), int: ("max_output_tokens",)}
            | {float: ("temperature", "top_p"), bool: ("stream", "store", "background")}
            | {list[Json]: ("tools",), str | Json: ("tool_choice", "conversation"), Json: ("text", "reasoning")},
        ),
        _RESPONSE,
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

# The routes of Text Embeddings Inference and the types of their responses.
_TEI: Mapping[str, tuple[str, Any]] = {  # Any: types
    "/embed": ("Embed texts", list[list[float]]),
    "/embed_all": ("Embed each token of texts", list[list[list[float]]]),
    "/embed_sparse": ("Embed texts, without zeros", list[list[tei.SparseValue]]),
    "/similarity": ("Compare a sentence with others", list[float]),
    "/predict": ("Classify texts", list[tei.Prediction] | list[list[tei.Prediction]]),
}


_CONVERSATION_BODY = _object("ConversationRequest", {}, {dict[str, str]: ("metadata",), list[Json]: ("items",)})
_NEW_ITEMS = _object("NewItems", {"items": list[Json]})

# Path, method, summary, response and request.
_STORED_ROUTES: Sequence[tuple[str, str, str, Any, Any]] = (  # Any: types
    (COMPACTION_PATH, "POST", "Compact the input of a response", _COMPACTION, _COMPACTION_REQUEST),
    ("/v1/responses/{response_id}", "GET", "Get a stored response", _RESPONSE, None),
    ("/v1/responses/{response_id}", "DELETE", "Delete a stored response", _DELETED, None),
    ("/v1/responses/{response_id}/cancel", "POST", "Cancel a response in the background", _RESPONSE, None),
    ("/v1/responses/{response_id}/input_items", "GET", "List the input items of a stored response", _ITEMS, None),
    ("/v1/conversations", "POST", "Create a conversation", _STORED_CONVERSATION, _CONVERSATION_BODY),
    ("/v1/conversations/{conversation_id}", "GET", "Get a conversation", _STORED_CONVERSATION, None),
    (
        "/v1/conversations/{conversation_id}",
        "POST",
        "Change the metadata of a conversation",
        _STORED_CONVERSATION,
        _CONVERSATION_BODY,
    ),
    ("/v1/conversations/{conversation_id}", "DELETE", "Delete a conversation", _DELETED, None),
    ("/v1/conversations/{conversation_id}/items", "GET", "List the items of a conversation", _ITEMS, None),
    ("/v1/conversations/{conversation_id}/items", "POST", "Add items to a conversation", _ITEMS, _NEW_ITEMS),
    ("/v1/conversations/{conversation_id}/items/{item_id}", "GET", "Get an item of a conversation", Json, None),
    (
        "/v1/conversations/{conversation_id}/items/{item_id}",
        "DELETE",
        "Delete an item of a conversation",
        _STORED_CONVERSATION,
        None,
    ),
)


@cache
def documented_routes() -> Sequence[tuple[str, BaseRouteHandler]]:
    """Return all paths, each with a handler that serves nothing and has the types of its request and response."""
    return [*_openai(), *_oip(), *_dialects(), *_server()]


def _openai() -> Routes:
    def with_prefix(*paths: str) -> Sequence[str]:
        return [prefix + path for prefix in PREFIXES for path in paths]

    for operation, paths in OPENAI_PATHS.items():
        request, response = _TYPES[operation]
        body = MultipartBody if operation in MULTIPART_OPERATIONS else JSONBody
        summary = operation.replace("_", " ").capitalize()
        media_type = _EVENTS if operation in _STREAMED else None
        own_paths = with_prefix(*(path for path in paths if path != COMPACTION_PATH))
        yield from _routes("POST", "OpenAI", own_paths, summary, response, body[request], media_type)
    yield from _batches(with_prefix)
    for path, method, summary, response, request in _STORED_ROUTES:
        body_type = None if request is None else _JSON_BODY[request]
        yield from _routes(method, "OpenAI", with_prefix(path), summary, response, body_type)
    yield from _routes("GET", "OpenAI", with_prefix("/v1/models"), "List models", ModelList)
    yield from _routes("GET", "OpenAI", with_prefix("/v1/models/{name}"), "Get a model", ModelObject)


def _batches(with_prefix: Callable[..., Sequence[str]]) -> Routes:
    get, post, delete = (partial(_routes, method, "OpenAI") for method in ("GET", "POST", "DELETE"))
    paths, one = with_prefix("/v1/files"), with_prefix("/v1/files/{file_id}")
    yield from post(paths, "Upload a file of requests", FileObject, MultipartBody[FileForm])
    yield from get(paths, "List files", files.FilePage)
    yield from get(one, "Get a file", FileObject)
    yield from delete(one, "Delete a file", files.DeletedFile)
    yield from get([f"{path}/content" for path in one], "Download a file", None, media_type="application/jsonl")
    paths, one = with_prefix("/v1/batches"), with_prefix("/v1/batches/{batch_id}")
    yield from post(paths, "Create a batch", Batch, JSONBody[batches.BatchRequest])
    yield from get(paths, "List batches", batches.BatchPage)
    yield from get(one, "Get a batch", Batch)
    yield from post([f"{path}/cancel" for path in one], "Cancel a batch", Batch)


def _oip() -> Routes:
    def of_model(ending: str) -> Sequence[str]:
        return [f"/v2/models/{{name}}{version}{ending}" for version in ("", "/versions/{version}")]

    for verb in ("predict", "explain"):
        path, summary = f"/v1/models/{{name}}:{verb}", f"{verb.capitalize()} for instances"
        yield from _routes("POST", "Open Inference Protocol v1", [path], summary, Json, JSONBody[v1.PredictionRequest])
    get, post = (partial(_routes, method, "Open Inference Protocol v2") for method in ("GET", "POST"))
    yield from get(["/v2"], "Get server metadata", metadata.ServerMetadata)
    for word in ("live", "ready"):
        summary = f"Check whether the server is {word}"
        yield from get([f"/v2/health/{word}"], summary, dict[str, bool], is_public=True, is_probe=True)
    yield from get(["/v2/models"], "List the names of models", v2.ModelNames)
    yield from get(["/v2/models/stats"], "Get statistics of all models", metadata.Statistics)
    yield from get(of_model(""), "Get metadata of a model", metadata.ModelMetadata)
    yield from get(of_model("/ready"), "Check whether a model is ready", v2.ModelReady, is_probe=True)
    summary = "Get the configuration of a model, as Triton does"
    yield from get(of_model("/config"), summary, metadata.ModelConfiguration)
    yield from get(of_model("/stats"), "Get statistics of a model", metadata.Statistics)
    request, binary = JSONBody[InferenceRequestBody], "application/octet-stream"
    yield from post(of_model("/infer"), "Run inference on tensors", InferenceResponseBody, request, binary)
    request_, summary = JSONBody[v2.GenerateRequest], "Generate text as a stream"
    yield from post(of_model("/generate"), "Generate text", v2.GenerateResponse, request_)
    yield from post(of_model("/generate_stream"), summary, None, request_, _EVENTS)
    index, query = list[metadata.RepositoryEntry], JSONBody[v2.IndexRequest]
    summary = "List models with their states"
    yield from post(["/v2/repository/index"], summary, index, query, is_body_optional=True)
    for verb in ("load", "unload"):
        yield from post([f"/v2/repository/models/{{name}}/{verb}"], f"{verb.capitalize()} a model", Json)


def _dialects() -> Routes:
    get, post = (partial(_routes, method, "vLLM") for method in ("GET", "POST"))
    paths = [prefix + "/v1/chat/completions/batch" for prefix in PREFIXES]
    response = vllm_server.BatchResponse
    yield from post(paths, "Complete several chats", response, JSONBody[vllm_server.BatchRequest])
    summary = "Get the tokenizer of the model of the parameter `model`, or of the only one"
    yield from get(["/tokenizer_info"], summary, Json)
    yield from get(["/load"], "Count the requests that run or wait", vllm_server.Load)
    yield from get(["/version"], "Get the version of the appliance", vllm_server.Version)
    paths, summary = (
        [prefix + "/v1/fim/completions" for prefix in PREFIXES],
        "Fill in text between a prompt and a suffix",
    )
    yield from _routes("POST", "Mistral", paths, summary, types.ChatCompletion, JSONBody[mistral.FimRequest], _EVENTS)
    post = partial(_routes, "POST", "Cohere")
    yield from post(
        ["/v2/embed", "/v1/embed"], "Embed texts or images", cohere.EmbedResponse, JSONBody[cohere.EmbedRequest]
    )
    get, post = (partial(_routes, method, "Text Embeddings Inference") for method in ("GET", "POST"))
    body: Any = JSONBody  # Any: for a type that is a value
    for path, (summary, response) in _TEI.items():
        yield from post([path], summary, response, body[tei.ROUTES[path].type])
    yield from post(["/"], "Embed, compare, rank or classify texts, as the body says", list[Any], JSONBody[Json])
    yield from get(["/info"], "Get the model of the parameter `model`, or the only one", tei.Info)
    yield from _ollama()
    summary = "Chat, complete, embed, rank or classify, as the body says"
    yield from _routes("POST", "SageMaker", ["/invocations"], summary, Any, JSONBody[Json], _EVENTS)


def _ollama() -> Routes:
    get, post, delete = (partial(_routes, method, "Ollama") for method in ("GET", "POST", "DELETE"))
    lines = "application/x-ndjson"
    yield from post(["/api/chat"], "Chat", Json, JSONBody[ollama_requests.ChatRequest], lines)
    yield from post(["/api/generate"], "Generate text", Json, JSONBody[ollama_requests.GenerateRequest], lines)
    yield from post(["/api/embed"], "Embed texts", Json, JSONBody[ollama_requests.EmbedRequest])
    yield from post(["/api/embeddings"], "Embed a text", Json, JSONBody[ollama_requests.EmbeddingsRequest])
    yield from post(["/api/show"], "Get a model", ollama.Description, JSONBody[ollama_requests.NameRequest])
    yield from get(["/api/tags"], "List models", ollama.Models)
    yield from get(["/api/ps"], "List models that can answer", ollama.RunningModels)
    yield from get(["/api/version"], "Get the version of the API", ollama.Version)
    for path in ("/api/pull", "/api/push", "/api/create", "/api/copy"):
        yield from post([path], "Always refused; the error says what to do instead")
    yield from delete(["/api/delete"], "Always refused; the error says what to do instead")


def _server() -> Routes:
    for method, paths, summary in (
        ("GET", ["/livez"], "Check whether the server works"),
        ("GET", ["/readyz", "/health", "/ping"], "Check whether all models are ready"),
        ("POST", ["/ping"], "Check whether all models are ready"),
        ("GET", ["/startupz"], "Check whether all models have been ready once"),
    ):
        yield from _routes(method, "Health", paths, summary, ProbeResponse, is_public=True, is_probe=True)
    for path, summary, response in (
        ("/", "List the routes", Json),
        ("/config", "Get the config without secrets, as YAML", None),
        ("/docs", "Open this document as a page", None),
        ("/schema", "Open this document as a page", None),
        ("/schema/openapi.json", "Get this document", Json),
        ("/metrics", "Get metrics for Prometheus", None),
    ):
        yield from _routes("GET", "Server", [path], summary, response)


def _routes(
    method: str,
    tag: str,
    paths: Sequence[str],
    summary: str,
    response: Any = None,  # Any: types
    request: Any = None,  # Any: types
    media_type: str | None = None,
    *,
    is_body_optional: bool = False,
    is_public: bool = False,
    is_probe: bool = False,
) -> Routes:
    """Yield one method of some paths.

    A `response` of None is not JSON; `media_type` is another one of responses. A probe's 503 has the same body as 200.
    """

    async def without_body() -> Any: ...  # Any: set below

    async def with_body(data: Any) -> Any: ...  # Any: set below

    handler = without_body if request is None else with_body
    handler.__annotations__ = {"data": request, "return": response}
    unavailable = ResponseSpec(response, generate_examples=False, description="Not ready")
    for path in paths:
        declare = route(
            re.sub(r"{(\w+)}", r"{\1:str}", with_slash(path)),
            http_method=HttpMethod(method),
            status_code=200,
            summary=summary,
            tags=[tag],
            security=[{}] if is_public else None,
            responses={503: unavailable} if is_probe else None,
            response_description="Success",
            opt={"method": method, "media_type": media_type, "is_body_optional": is_body_optional},
        )
        yield path, declare(handler)


def with_slash(path: str) -> str:
    """Return the path for Litestar, where a parameter is a whole segment, which {name} of {name}:predict is not."""
    return path.replace("}:", "}/:")
