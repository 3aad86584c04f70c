"""Every route as the document tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.core.model import OPENAI_PATHS, Operation


@dataclass(frozen=True, slots=True)
class DocumentedRoute:
    """One method of one path: what it does, the shapes of its request and of its answer, and of its errors."""

    method: str
    path: str
    summary: str
    request: str | None
    answer: str | None
    error: str = "InferenceError"
    takes_nothing: bool = False
    """A body may be left out."""
    operation: Operation | None = None
    """What a key must be allowed to ask for; None where that depends on the model."""


_FORMS = frozenset({Operation.TRANSCRIPTION, Operation.TRANSLATION, Operation.IMAGE_EDIT, Operation.IMAGE_VARIATION})

# Paths of the second version end alike with a version and without.
_MODEL: Sequence[tuple[str, str, str, str | None, str | None]] = (
    ("get", "", "What a model takes and gives", None, "ModelMetadata"),
    ("get", "/ready", "Whether a model answers", None, "ModelReady"),
    ("get", "/config", "What a model takes and gives, in Triton's words", None, "Configuration"),
    ("get", "/stats", "How often a model answered", None, "Statistics"),
    ("post", "/infer", "Tensors to tensors", "InferenceRequest", None),
    ("post", "/generate", "A text to a text", "GenerateRequest", "GenerateResponse"),
    ("post", "/generate_stream", "A text to a text, as it comes", "GenerateRequest", None),
)

_REST: Sequence[DocumentedRoute] = (
    DocumentedRoute("get", "/", "Where to go", None, "Routes", "OpenAIError"),
    DocumentedRoute("get", "/config", "The config, secrets left out", None, None, "OpenAIError"),
    DocumentedRoute("get", "/v1/models", "Every model", None, "Models", "OpenAIError"),
    DocumentedRoute("get", "/openai/v1/models", "Every model", None, "Models", "OpenAIError"),
    DocumentedRoute("get", "/v1/models/{name}", "One model", None, "Model", "OpenAIError"),
    DocumentedRoute("get", "/openai/v1/models/{name}", "One model", None, "Model", "OpenAIError"),
    DocumentedRoute(
        "post", "/v1/models/{name}:predict", "Predictions for instances", "PredictionRequest", "Prediction"
    ),
    DocumentedRoute(
        "post", "/v1/models/{name}:explain", "Explanations for instances", "PredictionRequest", "Prediction"
    ),
    DocumentedRoute("get", "/v2", "What the server is", None, "Server"),
    DocumentedRoute("get", "/v2/health/live", "Whether no model is beyond help", None, "Live"),
    DocumentedRoute("get", "/v2/health/ready", "Whether every model answers", None, "Ready"),
    DocumentedRoute("get", "/v2/models", "The name of every model", None, "ModelNames"),
    DocumentedRoute("get", "/v2/models/stats", "How often every model answered", None, "Statistics"),
    DocumentedRoute(
        "post", "/v2/repository/index", "Every model with its state", "IndexRequest", "Index", takes_nothing=True
    ),
    DocumentedRoute("post", "/v2/repository/models/{name}/load", "Load a model", None, "RepositoryChange"),
    DocumentedRoute("post", "/v2/repository/models/{name}/unload", "Unload a model", None, "RepositoryChange"),
    DocumentedRoute("get", "/schema", "The page to read this", None, None, "OpenAIError"),
    DocumentedRoute("get", "/schema/openapi.json", "This", None, None, "OpenAIError"),
    DocumentedRoute("get", "/metrics", "Metrics for Prometheus", None, None, "OpenAIError"),
)

_PROBES: Mapping[str, str] = {
    "/livez": "Whether no model is beyond help",
    "/readyz": "Whether every model answers",
    "/health": "Whether every model answers",
    "/ping": "Whether every model answers",
    "/startupz": "Whether every model has answered once",
}


def operations() -> Iterator[DocumentedRoute]:
    """All of them."""
    for operation, paths in OPENAI_PATHS.items():
        for path in paths:
            for prefix in ("", "/openai"):
                request = None if operation in _FORMS else "OpenAIRequest"
                summary = operation.replace("_", " ").capitalize()
                yield DocumentedRoute("post", prefix + path, summary, request, None, "OpenAIError", operation=operation)
    yield from _REST
    for path, summary in _PROBES.items():
        yield DocumentedRoute("get", path, summary, None, "Probe", "OpenAIError")
    for method, ending, summary, request, answer in _MODEL:
        for version in ("", "/versions/{version}"):
            yield DocumentedRoute(method, f"/v2/models/{{name}}{version}{ending}", summary, request, answer)
