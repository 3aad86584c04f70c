"""The documented routes: what they take and return.

They are declared here and not by the handlers, because handlers read bodies themselves, after authorization, and serve
several of these paths by one wildcard: the name of a model may contain slashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from litestar.params import JSONBody

from appliance.api.oip import generate, metadata, repository, v1, v2
from appliance.api.openai import ModelList, ModelObject
from appliance.api.openapi.openai_types import types_of
from appliance.api.probes import ProbeResponse
from appliance.core.model import OPENAI_PATHS, Operation
from appliance.core.openai_types import Json
from appliance.tensors.codec import InferenceRequestBody, InferenceResponseBody

Tag = Literal["OpenAI", "Open Inference Protocol v1", "Open Inference Protocol v2", "Health", "Server"]

_EVENT_STREAM = "text/event-stream"

_STREAMED = frozenset(
    {Operation.CHAT_COMPLETION, Operation.COMPLETION, Operation.RESPONSE, Operation.MESSAGE, Operation.TRANSCRIPTION}
)


@dataclass(frozen=True, slots=True)
class DocumentedRoute:
    """One method of one or several paths, with the types of its request and response; None is not JSON."""

    method: Literal["GET", "POST"]
    paths: tuple[str, ...]
    tag: Tag
    summary: str
    response: Any  # Any: types
    request: Any = None  # Any: types
    other_media_type: str | None = None
    """A media type of responses beside JSON."""
    is_body_optional: bool = False
    is_public: bool = False
    is_probe: bool = False
    """503 has the same body as 200."""


def documented_routes() -> Iterator[DocumentedRoute]:
    """Yield all routes."""
    for operation, paths in OPENAI_PATHS.items():
        request, response = types_of(operation)
        summary = operation.replace("_", " ").capitalize()
        stream = _EVENT_STREAM if operation in _STREAMED else None
        yield DocumentedRoute("POST", _with_prefix(*paths), "OpenAI", summary, response, request, stream)
    yield DocumentedRoute("GET", _with_prefix("/v1/models"), "OpenAI", "List models", ModelList)
    yield DocumentedRoute("GET", _with_prefix("/v1/models/{name}"), "OpenAI", "Get a model", ModelObject)
    yield from _oip_v1()
    yield from _oip_v2()
    yield from _server()


def _with_prefix(*paths: str) -> tuple[str, ...]:
    return tuple(prefix + path for prefix in ("", "/openai") for path in paths)


def _oip_v1() -> Iterator[DocumentedRoute]:
    for verb in ("predict", "explain"):
        path, summary = f"/v1/models/{{name}}:{verb}", f"{verb.capitalize()} for instances"
        yield DocumentedRoute(
            "POST", (path,), "Open Inference Protocol v1", summary, Json, JSONBody[v1.PredictionRequest]
        )


def _oip_v2() -> Iterator[DocumentedRoute]:
    tag: Tag = "Open Inference Protocol v2"
    yield DocumentedRoute("GET", ("/v2",), tag, "Get server metadata", metadata.ServerMetadata)
    for word in ("live", "ready"):
        summary = f"Check whether the server is {word}"
        path = f"/v2/health/{word}"
        yield DocumentedRoute("GET", (path,), tag, summary, dict[str, bool], is_public=True, is_probe=True)
    yield DocumentedRoute("GET", ("/v2/models",), tag, "List the names of models", v2.ModelNames)
    yield DocumentedRoute("GET", ("/v2/models/stats",), tag, "Get statistics of all models", metadata.Statistics)

    def of_model(ending: str) -> tuple[str, ...]:
        return tuple(f"/v2/models/{{name}}{version}{ending}" for version in ("", "/versions/{version}"))

    yield DocumentedRoute("GET", of_model(""), tag, "Get metadata of a model", metadata.ModelMetadata)
    summary = "Check whether a model is ready"
    yield DocumentedRoute("GET", of_model("/ready"), tag, summary, v2.ModelReady, is_probe=True)
    summary = "Get the configuration of a model, as Triton does"
    yield DocumentedRoute("GET", of_model("/config"), tag, summary, metadata.ModelConfiguration)
    yield DocumentedRoute("GET", of_model("/stats"), tag, "Get statistics of a model", metadata.Statistics)
    summary, binary = "Run inference on tensors", "application/octet-stream"
    request, response = JSONBody[InferenceRequestBody], InferenceResponseBody
    yield DocumentedRoute("POST", of_model("/infer"), tag, summary, response, request, binary)
    request_, text = JSONBody[generate.GenerateRequest], generate.GenerateResponse
    yield DocumentedRoute("POST", of_model("/generate"), tag, "Generate text", text, request_)
    summary = "Generate text as a stream"
    yield DocumentedRoute("POST", of_model("/generate_stream"), tag, summary, None, request_, _EVENT_STREAM)
    summary = "List models with their states"
    path = "/v2/repository/index"
    index, query = list[metadata.RepositoryEntry], JSONBody[repository.IndexRequest]
    yield DocumentedRoute("POST", (path,), tag, summary, index, query, is_body_optional=True)
    for verb in ("load", "unload"):
        path = f"/v2/repository/models/{{name}}/{verb}"
        yield DocumentedRoute("POST", (path,), tag, f"{verb.capitalize()} a model", Json)


def _server() -> Iterator[DocumentedRoute]:
    for paths, summary in (
        (("/livez",), "Check whether the server works"),
        (("/readyz", "/health", "/ping"), "Check whether all models are ready"),
        (("/startupz",), "Check whether all models have been ready once"),
    ):
        yield DocumentedRoute("GET", paths, "Health", summary, ProbeResponse, is_public=True, is_probe=True)
    for path, summary, response in (
        ("/", "List the routes", Json),
        ("/config", "Get the config without secrets, as YAML", None),
        ("/docs", "Open this document as a page", None),
        ("/schema", "Open this document as a page", None),
        ("/schema/openapi.json", "Get this document", Json),
        ("/metrics", "Get metrics for Prometheus", None),
    ):
        yield DocumentedRoute("GET", (path,), "Server", summary, response)
