"""The whole config as one frozen object."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from appliance.config.base import BaseConfig, Change, text_like
from appliance.config.batches import BatchesConfig
from appliance.config.models import AnyModel
from appliance.config.responses import ResponsesConfig
from appliance.config.server import ServerConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.config.telemetry import LoggingConfig, TracingConfig

Label = Annotated[
    str,
    text_like(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "lower-case letters, digits and -, with no - first or last", max_length=63
    ),
]


class MetadataConfig(BaseConfig):
    """Name and namespace of the service behind KServe's gateway.

    The gateway's URLs are served too: `/NAMESPACE/NAME/v1/...` and `/publishers/NAMESPACE/models/MODEL/v1/...`, and the
    names `publishers/NAMESPACE/models/MODEL` are accepted in `model` and in the header `X-Gateway-Model-Name`.
    """

    name: Label | None = None
    """Name of the LLMInferenceService in Kubernetes; lower-case letters, digits and `-`. Unset is no gateway."""

    namespace: Label = "default"
    """Namespace of the service; lower-case letters, digits and `-`."""


class CosineConfig(BaseConfig):
    """Embeddings that those of a response are compared with, such as those of the model before it was quantized."""

    of: Annotated[str, Field(min_length=1)]
    """JSON file with a response of `/v1/embeddings` to the same `body`; a relative path begins at the config's."""

    at_least: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Least cosine of each embedding with the one of the same index in the file."""


class ExpectConfig(BaseConfig):
    """One request and the expected response; `appliance smoke` checks it."""

    path: Annotated[str, text_like("^/", "a path that begins with /")]
    """Path of the request, such as `/v1/chat/completions`."""

    body: JsonValue = None
    """JSON to POST; unset makes it a GET."""

    status: Annotated[int, Field(ge=100, le=599)] = 200
    """Expected HTTP status."""

    contains: str | tuple[str, ...] = ()
    """Text, or several texts, that the body of the response must contain."""

    cosine: CosineConfig | None = None
    """Embeddings that those in the response must resemble; unset compares none."""


class Config(BaseConfig):
    """The models to serve, the location of their files, and their layout on GPUs."""

    models: Annotated[tuple[AnyModel, ...], Field(min_length=1), Change.SWAP]
    """The models to serve, one or more."""

    metadata: MetadataConfig = MetadataConfig()
    """Name of the service behind KServe's gateway."""

    server: ServerConfig = ServerConfig()
    """The listeners of the server, its access rules and its shutdown."""

    batches: BatchesConfig | None = None
    """Files and batches of requests, for `/v1/files` and `/v1/batches`; unset has none."""

    logging: Annotated[LoggingConfig, Change.HOT] = LoggingConfig()
    """Format and content of the log."""

    tracing: TracingConfig | None = None
    """Export of request spans; unset exports none."""

    responses: ResponsesConfig | None = None
    """Storage of responses and conversations, for `store`, `previous_response_id`, `background` and `conversation`;
    unset stores none, and says so in each response.
    """

    storage: GlobalStorageConfig = GlobalStorageConfig()
    """Cache, credentials and download settings for all models."""

    expect: Annotated[tuple[ExpectConfig, ...], Change.HOT] = ()
    """Requests that `appliance smoke` sends once the models are ready, and their expected responses."""
