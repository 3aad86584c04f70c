"""The whole config as one frozen object."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from appliance.config.base import BaseConfig, Change
from appliance.config.models import AnyModel
from appliance.config.server import ServerConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.config.telemetry import LoggingConfig, TracingConfig

Label = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class MetadataConfig(BaseConfig):
    """What the service is called where KServe's gateway leads to it.

    Its URLs are answered here as well: `/NAMESPACE/NAME/v1/...` and `/publishers/NAMESPACE/models/MODEL/v1/...`, and so
    are the names `publishers/NAMESPACE/models/MODEL`, in `model` and in the header `X-Gateway-Model-Name`.
    """

    name: Label | None = None
    """
    Name of the service: the name of its LLMInferenceService in Kubernetes; small letters, digits and `-`. Unset is that
    there is no gateway.
    """

    namespace: Label = "default"
    """Namespace it is in; small letters, digits and `-`."""


class ExpectConfig(BaseConfig):
    """One request and what its answer must be; `appliance smoke` checks it."""

    path: Annotated[str, Field(pattern="^/")]
    """Path of the request, such as `/v1/chat/completions`."""

    body: JsonValue = None
    """JSON to POST; unset makes it a GET."""

    status: Annotated[int, Field(ge=100, le=599)] = 200
    """HTTP status the answer must have."""

    contains: str | tuple[str, ...] = ()
    """Text, or several texts, that must occur in the answer's body."""


class Config(BaseConfig):
    """Which models to serve, where their bytes lie, and how they sit on the GPUs."""

    models: Annotated[tuple[AnyModel, ...], Field(min_length=1), Change.SWAP]
    """The models to serve, one or more."""

    metadata: MetadataConfig = MetadataConfig()
    """What the service is called behind KServe's gateway."""

    server: ServerConfig = ServerConfig()
    """Where the appliance listens."""

    logging: Annotated[LoggingConfig, Change.HOT] = LoggingConfig()
    """What the log looks like."""

    tracing: TracingConfig | None = None
    """Where spans of requests go; unset is nowhere."""

    storage: GlobalStorageConfig = GlobalStorageConfig()
    """Where the bytes of all models are kept, and how they are fetched."""

    expect: Annotated[tuple[ExpectConfig, ...], Change.HOT] = ()
    """What `appliance smoke` asks once the models are ready."""
