"""Config of models: the entries of `models:`, one class for each model class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, GetCoreSchemaHandler, JsonValue, Tag, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from appliance.config.adapters import CompletionsConfig, HttpConfig, OipConfig
from appliance.config.base import BaseConfig, Change, text_like
from appliance.config.engine import AnyFramework, EngineConfig, FrameworkConfig, OnnxEncoderConfig, PythonConfig
from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.config.limits import LimitsConfig, SloConfig
from appliance.config.storage import StorageConfig
from appliance.config.upstreams import (
    Balance,
    CircuitBreakerConfig,
    HeadersConfig,
    HealthCheckConfig,
    PoolMemberConfig,
    RequestRewriteConfig,
    ResponseCacheConfig,
    RetryConfig,
    UpstreamConfig,
)

# Letters of all scripts with their combining marks: the characters that may begin a name in XML, without those that are
# no letters (https://www.w3.org/TR/xml/#NT-NameStartChar). Not as classes, because editors, Python and Rust read them.
_LETTERS = (
    "A-Za-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u037d\u037f-\u1fff\u2070-\u218f\u2c00-\u2fef\u3001-\ud7ff"
    "\uf900-\ufdcf\ufdf0-\ufefe\uff10-\uffdc\U00010000-\U0001efff\U00020000-\U000323af"
)
_MARKS = "._/@:+-"

NAME_PATTERN = f"^[{_LETTERS}][{_LETTERS}{_MARKS}]*$"

Name = Annotated[
    str,
    text_like(
        NAME_PATTERN,
        "letters and digits of any script and . _ / @ : + -, with a letter or a digit first",
        max_length=256,
    ),
]

FailureAction = Literal["stay", "exit", "restart"]
"""What happens when a model fails: the process stays up and reports it, the process ends, or the model restarts."""

LORA_PREFIX = "adapters."
"""What the names of LoRA adapters begin with among the storages of a model."""

TOKENIZER = "tokenizer"
"""The name of the tokenizer among the storages of a model."""


class AliasConfig(BaseConfig):
    """Another name of a model, with changes of the requests that use it."""

    name: Name
    """The name that clients send as `model`."""

    request: RequestRewriteConfig = RequestRewriteConfig()
    """Changes of requests that use this name, on top of the model's own `request`: where both set a field or a system
    prompt, these count.
    """


FallbackReason = Literal["context_length", "overloaded", "unavailable"]


class FallbackConfig(BaseConfig):
    """A model that answers in the place of another one."""

    model: Name
    """Another model of this file that supports the operations: its name, an alias, or an adapter's name."""

    on: Annotated[tuple[FallbackReason, ...], Field(min_length=1, json_schema_extra={"uniqueItems": True})] = (
        "context_length",
        "overloaded",
        "unavailable",
    )
    """Reasons for it: the request is longer than the model's context; the model refuses it because of its queue, its
    `slo`, or 429 of its upstreams; or the model is not ready, or none of its upstreams can be reached.
    """


class ModelConfig(BaseConfig):
    """One entry of `models:`; each model class adds its own keys."""

    has_engine: ClassVar[bool] = True
    """Whether the model runs on this machine, and so needs memory and waits for its turn to load."""

    name: Name
    """The name that clients send as `model`; letters and digits of any script and `. _ / @ : + -`."""

    aliases: Annotated[tuple[Name | AliasConfig, ...], Change.HOT] = ()
    """Other names that clients may send for the same model: a name, or a mapping of a `name` and a `request`, which
    changes the requests that use it.
    """

    limits: Annotated[LimitsConfig, Change.HOT] = LimitsConfig()
    """Limits of the model's load and of the duration of its requests."""

    slo: Annotated[SloConfig, Change.HOT] = SloConfig()
    """The latency that admitted requests are promised."""

    fallback: Annotated[tuple[FallbackConfig, ...], Change.HOT] = ()
    """Models that answer when this one cannot, the first one that can; also for keys that may not use them directly.
    The response has the name that the client sent, and the header `X-Fallback-Model`. Unset returns the error.
    """

    @property
    def alias_names(self) -> tuple[str, ...]:
        """The names of the aliases."""
        return tuple(alias if isinstance(alias, str) else alias.name for alias in self.aliases)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of this model, its own first."""
        return (self.name, *self.alias_names)

    def request_settings(self, name: str) -> Sequence[RequestRewriteConfig]:
        """Return the changes of requests that use one of the names; the later ones win."""
        return [alias.request for alias in self.aliases if isinstance(alias, AliasConfig) and alias.name == name]

    @property
    def backend(self) -> str:
        """What computes: `vllm`, a framework, `python` for a class of the user, or `appliance` for other servers."""
        return "vllm" if self.has_engine else "appliance"

    @property
    def probe_fields(self) -> Mapping[str, JsonValue]:
        """What probes show of its config besides the name."""
        return {}

    @property
    def targets(self) -> Sequence[str]:
        """The names of the other models that it sends requests to."""
        return ()

    @property
    def failure_action(self) -> FailureAction:
        """What happens when it fails; a model that other servers compute has nothing to restart."""
        return "stay"

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        """What must be downloaded before the model loads, by names of ours; empty for a model without storage."""
        return {}


def _engine_type(engine: Any) -> str:  # Any: what a file holds before it is validated
    is_python = "python" in engine if isinstance(engine, dict) else isinstance(engine, PythonConfig)
    return "PythonConfig" if is_python else "other"


AnyEngine = Annotated[
    Annotated[EngineConfig, Tag("other")] | Annotated[PythonConfig, Tag("PythonConfig")],
    Discriminator(_engine_type),
]
"""The engine: a class of the user if the key `python` names one, else vLLM."""


def _encoder_engine_type(engine: Any) -> str:  # Any: as above
    is_onnx = engine.get("backend") == "onnx" if isinstance(engine, dict) else isinstance(engine, OnnxEncoderConfig)
    return "OnnxEncoderConfig" if is_onnx and _engine_type(engine) == "other" else _engine_type(engine)


EncoderEngine = Annotated[
    Annotated[EngineConfig, Tag("other")]
    | Annotated[OnnxEncoderConfig, Tag("OnnxEncoderConfig")]
    | Annotated[PythonConfig, Tag("PythonConfig")],
    Discriminator(_encoder_engine_type),
]
"""The engine of an encoder: as above, or ONNX Runtime with `backend: onnx`."""

PredictorEngine = Annotated[
    Annotated[PythonConfig, Tag("PythonConfig")] | Annotated[AnyFramework, Tag("other")],
    Discriminator(_engine_type),
]
"""The engine of a predictor: a class of the user if the key `python` names one, else a framework."""

_STORAGE_UNLESS_PYTHON: JsonDict = {
    "if": {"required": ["engine"], "properties": {"engine": {"type": "object", "required": ["python"]}}},
    "else": {"required": ["storage"], "properties": {"storage": {"description": "Where the model's bytes come from."}}},
}


class RequestModelConfig(ModelConfig):
    """A model whose requests are JSON that the config can change."""

    request: Annotated[RequestRewriteConfig, Change.HOT] = RequestRewriteConfig()
    """Changes of the JSON of requests, such as defaults and a system prompt; unset changes only the model's name."""

    def request_settings(self, name: str) -> Sequence[RequestRewriteConfig]:
        return [self.request, *super().request_settings(name)]


class LocalModelConfig(ModelConfig):
    """A model that runs on this machine."""

    model_config = ConfigDict(json_schema_extra=_STORAGE_UNLESS_PYTHON)

    storage: StorageConfig | SkipJsonSchema[None] = None
    """Location of the model's files; optional with `engine.python`, whose class gets them as `model_dir`."""

    engine: BaseConfig

    on_failure: FailureAction = "stay"
    """What happens when the model fails. `stay` keeps the process running, with liveness 503 and the reason, for
    platforms that restart on failed liveness. `exit` ends the process once its running requests are finished, with the
    exit code of the fault, 4 if the engine died. `restart` restarts an engine that died or stalled in place, with
    exponential backoff; after the fifth death in a row the model stays failed, and a failed first start is not retried.
    On a machine that computes for another one (`layout.nodes.rank` above 0), `stay` is `exit`.
    """

    @model_validator(mode="after")
    def _has_storage(self) -> Self:
        if self.storage is None and not isinstance(self.engine, PythonConfig):
            raise PydanticCustomError("missing", "has no storage; must have it")
        return self

    @property
    def backend(self) -> str:
        return "python" if isinstance(self.engine, PythonConfig) else super().backend

    @property
    def failure_action(self) -> FailureAction:
        return self.on_failure

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        return {} if self.storage is None else {"model": self.storage}

    @property
    def allow_pickle(self) -> bool:
        """Whether weights that may run code are allowed."""
        return self.storage is not None and self.storage.allow_pickle


class LanguageModelConfig(LocalModelConfig, RequestModelConfig):
    """A language model on this machine, which generates text or encodes it."""

    layout: AnyLayout = LayoutConfig()
    """Devices and machines of the model; unset is one device. `auto` uses the fewest devices of this machine that the
    model fits on, and the log has the reason.
    """

    @property
    def probe_fields(self) -> Mapping[str, JsonValue]:
        if isinstance(self.layout, str):
            return {"layout": self.layout}
        return {"layout": self.layout.model_dump(mode="json", exclude_defaults=True)}

    @property
    def failure_action(self) -> FailureAction:
        if self.on_failure == "stay" and self.layout != "auto" and self.layout.is_worker_node:
            return "exit"
        return self.on_failure


class LoraConfig(BaseConfig):
    """A LoRA adapter, served under its own name in addition to its base model."""

    name: Name
    """The name that clients send as `model` to use the adapter."""

    storage: StorageConfig
    """Location of the adapter's files."""


class GenerativeConfig(LanguageModelConfig):
    """A language model: chat, completions, responses, messages."""

    class_: Annotated[Literal["generative"], Field(alias="class")]
    """The model class."""

    engine: AnyEngine = EngineConfig()
    """The engine: vLLM, or with the key `python` a class of your own."""

    chat_template: str | None = None
    """Jinja template for chat, inline or the path of a file; unset is the model's own."""

    tool_call_parser: str | None = None
    """vLLM's parser of tool calls, such as `hermes`; unset disables `tool_choice: auto`."""

    reasoning_parser: str | None = None
    """vLLM's parser that separates reasoning from the response, such as `qwen3`; unset does not separate them."""

    adapters: tuple[LoraConfig, ...] = ()
    """LoRA adapters, each served under its own name."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, *(adapter.name for adapter in self.adapters))

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        return {**super().storages} | {LORA_PREFIX + adapter.name: adapter.storage for adapter in self.adapters}


class EncoderConfig(LanguageModelConfig):
    """An encoder: embeddings, reranking and scores, classification."""

    class_: Annotated[Literal["encoder"], Field(alias="class")]
    """The model class."""

    engine: EncoderEngine = EngineConfig()
    """The engine: vLLM, whose `dtype: auto` is float32 on a CPU, ONNX Runtime with `backend: onnx`, or with the key
    `python` a class of your own.
    """

    task: Literal["embed", "rerank", "classify", "token_classify"] | None = None
    """Task of the model; unset is detected from its `config.json`: token classification or text classification by its
    head (`rerank` if it has a single label), else `embed`.
    """

    pooling: Literal["cls", "mean", "last"] | None = None
    """The embedding: the first token's vector, the mean of all, or the last token's; unset is the model's setting."""

    normalize: bool | None = None
    """Whether embeddings are normalized to length 1; unset is the model's own setting."""

    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Default dimensions of an embedding, for a Matryoshka model, whose embeddings can be truncated; setting it
    declares the model to be one. Unset is all dimensions.
    """

    @property
    def backend(self) -> str:
        return self.engine.backend if isinstance(self.engine, OnnxEncoderConfig) else super().backend

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        """With ONNX Runtime, only the files that it loads."""
        if self.storage is None or self.storage.include or not isinstance(self.engine, OnnxEncoderConfig):
            return super().storages
        return {"model": self.storage.model_copy(update={"include": self.engine.include})}


class PredictorConfig(LocalModelConfig):
    """A predictor: a classic model such as a classifier or a regression, for clients of the Open Inference Protocol."""

    class_: Annotated[Literal["predictor"], Field(alias="class")]
    """The model class."""

    aliases: Annotated[tuple[Name, ...], Change.HOT] = ()
    """Other names that clients may send for the same model."""

    engine: PredictorEngine
    """The engine: a framework, or with the key `python` a class of your own."""

    @property
    def backend(self) -> str:
        return self.engine.framework if isinstance(self.engine, FrameworkConfig) else super().backend

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        """Of a directory, only the files that the framework loads."""
        if self.storage is None or self.storage.include or isinstance(self.engine, PythonConfig):
            return super().storages
        return {"model": self.storage.model_copy(update={"include": self.engine.include})}


class ProxyConfig(RequestModelConfig):
    """A model on other servers: any operation of OpenAI's protocol that they support."""

    has_engine: ClassVar[bool] = False

    class_: Annotated[Literal["proxy"], Field(alias="class")]
    """The model class."""

    upstreams: Annotated[tuple[PoolMemberConfig, ...], Field(min_length=1)]
    """The servers that get the requests, one or more."""

    balance: Balance = "least_inflight"
    """Which upstream gets a request: the one with the fewest running requests, each in turn, or the one that got the
    same beginning of a prompt before, so that its prefix cache hits.
    """

    headers: HeadersConfig = HeadersConfig()
    """Headers of requests and responses."""

    retry: RetryConfig = RetryConfig()
    """When a request is retried."""

    breaker: CircuitBreakerConfig = CircuitBreakerConfig()
    """When an upstream that fails gets no requests."""

    health: HealthCheckConfig = HealthCheckConfig()
    """Health checks of upstreams."""

    cache: ResponseCacheConfig | None = None
    """The cache of responses; unset caches none, `{}` uses the defaults."""

    keep_alive_seconds: Annotated[float, Field(gt=0)] | None = 15
    """Silence in an event stream after which a comment keeps the connection open, in seconds; null sends none."""


class AdapterConfig(RequestModelConfig):
    """OpenAI's API for a model that lacks it."""

    has_engine: ClassVar[bool] = False

    class_: Annotated[Literal["adapter"], Field(alias="class")]
    """The model class."""

    target: Name | UpstreamConfig
    """The target of requests: the name of another model of this file, or the address of a remote server."""

    protocol: Annotated[CompletionsConfig | OipConfig | HttpConfig, Field(discriminator="kind")]
    """Protocol of the target."""

    @property
    def targets(self) -> Sequence[str]:
        return (self.target,) if isinstance(self.target, str) else ()

    @property
    def storages(self) -> Mapping[str, StorageConfig]:
        templated = self.protocol.templated
        tokenizer = None if templated is None else templated.tokenizer
        return {} if tokenizer is None else {TOKENIZER: tokenizer}


MODEL_CONFIGS: Mapping[str, type[ModelConfig]] = {
    "adapter": AdapterConfig,
    "generative": GenerativeConfig,
    "encoder": EncoderConfig,
    "predictor": PredictorConfig,
    "proxy": ProxyConfig,
}


class _ByClass:
    """Makes a field the tagged union of `MODEL_CONFIGS`, by the key `class`.

    pydantic's own discriminator would also accept the name of the attribute, `class_`.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # Any: a type
        choices = {name: handler.generate_schema(config) for name, config in MODEL_CONFIGS.items()}
        return core_schema.tagged_union_schema(choices, discriminator="class")


AnyModel = Annotated[ModelConfig, _ByClass]
"""One entry of `models:`; its key `class` says which model class it is."""
