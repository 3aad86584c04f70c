"""Config of engines: the options of vLLM that people set, all its other arguments, and Python classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from appliance.config.base import BaseConfig, text_like, without_free_keys

Count = Annotated[int, Field(ge=1)]


class StructuredOutputsConfig(BaseConfig):
    """Limits of the schema, grammar or list of choices of one request; beyond them it is 400.

    vLLM compiles them one after the other for all requests, and the time grows with the square of some sizes.
    """

    max_bytes: Count = 131_072
    """Limit of the bytes of a JSON Schema, a grammar, a regular expression, or all choices together."""

    max_properties: Count = 500
    """Limit of the properties of all objects in a JSON Schema."""

    max_enum_values: Count = 5_000
    """Limit of the values of all enumerations in a JSON Schema, and of choices."""

    compile_seconds: Annotated[float, Field(gt=0)] = 20
    """Limit of the CPU time to compile one of them, in seconds. Each new one is first compiled in a separate process,
    so that none blocks the engine for longer; the last 1,024 results are cached.
    """


class ServingConfig(BaseConfig):
    """Options of vLLM's front end, with vLLM's names: how requests become prompts, and what responses contain."""

    clamp_max_tokens: bool = False
    """Lower a `max_tokens`, `max_completion_tokens` or `max_output_tokens` above `max_model_len`; otherwise it is 400.
    The response then ends with `length` where the context does. Agents often ask for as much as large models give.
    """

    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """Form in which the chat template gets the content of messages: one text, or OpenAI's list of parts. `auto` reads
    the template.
    """

    default_chat_template_kwargs: Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)] = Field(
        default_factory=dict
    )
    """Variables for the chat template, such as `enable_thinking: false`. Those in a request's `chat_template_kwargs`
    count more.
    """

    response_role: Annotated[str, Field(min_length=1)] = "assistant"
    """Role of the messages in chat completions."""

    exclude_tools_when_tool_choice_none: bool = False
    """Leave the tools out of the prompt if a request has `tool_choice: none`."""

    tool_strict_level: Literal["auto", "function", "parameter"] = "auto"
    """How far tool calls are held to the tools of the request. `auto` follows `tool_choice` and each tool's `strict`;
    `function` guarantees the form of a call and the name of its tool; `parameter` also guarantees arguments by the
    schema, as if each tool had `strict: true`. It depends on the parser which of them it supports.
    """

    anthropic_disabled_thinking_effort: Literal["auto", "none", "low", "medium", "high", "xhigh", "max"] = "auto"
    """`reasoning_effort` of messages with `thinking: {type: disabled}`. `auto` is `none` if the chat template has it,
    else `low`.
    """

    return_tokens_as_token_ids: bool = False
    """Write tokens in log probabilities as `token_id:ID`, also those that are no text of their own."""

    enable_force_include_usage: bool = False
    """Send the usage in every stream, and in each of its chunks, as if each request asked for it."""

    enable_prompt_tokens_details: bool = False
    """Add `prompt_tokens_details`, with the tokens from the prefix cache, to the usage."""

    enable_per_request_metrics: bool = False
    """Add `metrics`, the times of the request in the engine, to responses."""

    enable_tokenizer_info_endpoint: bool = False
    """Serve the settings of the tokenizer, with the chat template, at `GET /tokenizer_info?model=NAME`. Keys that have
    `operations` need `tokenizer_info` among them.
    """

    fingerprint_mode: Literal["full", "hash", "custom", "none"] = "full"
    """The `system_fingerprint` of responses: vLLM's version with the parallelism and a hash of the config, without the
    parallelism, the text of `fingerprint_value`, or none.
    """

    fingerprint_value: Annotated[str, Field(min_length=1)] | None = None
    """The `system_fingerprint` with `fingerprint_mode: custom`."""

    @model_validator(mode="after")
    def _has_fingerprint(self) -> Self:
        if (self.fingerprint_mode == "custom") != (self.fingerprint_value is not None):
            raise ValueError("has one of fingerprint_mode: custom and fingerprint_value; must have both")
        return self


class EngineConfig(BaseConfig):
    """Options of vLLM."""

    backend: Annotated[str, text_like("^vllm$", '"vllm", or for an encoder "onnx"')] = "vllm"
    """What computes the model: `vllm`, or for an encoder also `onnx`."""

    max_model_len: Count | None = None
    """Limit of prompt and response together, in tokens; unset is the model's own limit."""

    max_num_seqs: Count | None = None
    """Limit of sequences computed at once; unset is vLLM's default."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of weights and activations. `auto` is the format in the model's config. On a CPU, whatever the
    processor, `auto` is float32 for models that embed, rank or classify, and for models with unquantized weights of up
    to 1 GiB in their files: for such small models the loss of quality outweighs the gain in speed.
    """

    quantization: Annotated[str, Field(min_length=1)] | None = None
    """Quantization method; unset is the one in the model's config."""

    kv_cache_memory_bytes: Count | None = None
    """Memory of the KV cache, in bytes per device; unset is measured on a GPU, and at most 2 GiB on a CPU."""

    enforce_eager: bool | None = None
    """Skip compilation for a faster start; unset is true on a CPU and false on a GPU. Compiled code is kept below
    `storage.cache_dir` for the next start.
    """

    stream_interval: Count | None = None
    """Tokens in each chunk of a stream after the first one, which is sent at once; the last chunk has the rest. Unset
    is vLLM's default, 1: every token is sent when it is generated. Larger values cost less CPU per token, and the text
    arrives in larger steps: 4 saves about a third of this process's time per token. A client that reads slowly always
    gets larger chunks. It does not apply to models that generate no text.
    """

    trust_remote_code: bool = False
    """Run Python code from the model's directory, with all rights of this process. Models that vLLM does not support
    need it; enable it only if you trust the author of the model.
    """

    stall_seconds: Annotated[float, Field(gt=0)] = 300
    """Time for which an engine with running requests may make no progress before it is treated as dead, in seconds. Any
    engine step is progress, for any request, including a part of a long prompt; the default is vLLM's own limit of a
    step.
    """

    structured_outputs: StructuredOutputsConfig = StructuredOutputsConfig()
    """Limits of the schema, grammar or list of choices of one request."""

    serving: ServingConfig = ServingConfig()
    """Options of vLLM's front end, by their Python names."""

    args: Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)] = Field(default_factory=dict)
    """Any other engine argument of vLLM, by its Python name, validated against `vllm-engine.schema.json`."""


_FROM_STORAGE = "must be left to storage.uri, which says where the bytes come from"
_OUR_LOG = "must be left to logging, which writes one log for all"

_NO_PROMPTS = "must be left out: prompts and responses are never logged"
_TLS = "must be left to server.tls"
_NO_CODE = "must be left out: no code is loaded into the server"
_NO_TRUST = "must be left out: clients do not choose what the server runs"
_NO_UVICORN = "must be left out: the server is not vLLM's"
_ONE_ROUTER = "must be left out: one process serves all ports"

_PORTS = "must be set as layout.nodes.port, which is one less"
_BY_CLASS = "must be left to the model's class"

KEYS: Mapping[str, str] = {
    "tensor_parallel_size": "layout.tensor_parallel",
    "pipeline_parallel_size": "layout.pipeline_parallel",
    "data_parallel_size": "layout.data_parallel",
    "data_parallel_size_local": "layout.data_parallel_local",
    "data_parallel_address": "layout.data_parallel_address",
    "enable_expert_parallel": "layout.expert_parallel",
    "decode_context_parallel_size": "layout.decode_context_parallel",
    "device_ids": "layout.devices",
    "cpu_offload_gb": "layout.cpu_offload_gib",
    "nnodes": "layout.nodes.count",
    "node_rank": "layout.nodes.rank",
    "master_addr": "layout.nodes.address",
    "distributed_executor_backend": "layout.executor",
    "gpu_memory_utilization": "layout.memory_fraction",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "dtype": "engine.dtype",
    "quantization": "engine.quantization",
    "stream_interval": "engine.stream_interval",
    "kv_cache_memory_bytes": "engine.kv_cache_memory_bytes",
    "enforce_eager": "engine.enforce_eager",
    "trust_remote_code": "engine.trust_remote_code",
}
"""Engine arguments of vLLM that are keys of a model here."""

FRONT_END: Mapping[str, str] = {
    "lora_modules": "must be set as the model's adapters",
    "chat_template": "must be set as the model's chat_template",
    "tool_call_parser": "must be set as the model's tool_call_parser",
    "enable_auto_tool_choice": "must be left to the model's tool_call_parser, which turns it on",
    "trust_request_chat_template": _NO_TRUST,
    "trust_request_mm_kwargs": _NO_TRUST,
    "tool_parser_plugin": _NO_CODE,
    "tool_server": _NO_CODE,
    "middleware": _NO_CODE,
    "max_log_len": _NO_PROMPTS,
    "enable_log_outputs": _NO_PROMPTS,
    "enable_log_deltas": _NO_PROMPTS,
    "log_error_stack": _OUR_LOG,
    "uvicorn_log_level": "must be set as logging.level",
    "disable_uvicorn_access_log": "must be left to logging.access",
    "disable_access_log_for_endpoints": "must be left to logging.access",
    "host": "must be set as server.host",
    "port": "must be set as server.port",
    "uds": _NO_UVICORN,
    "grpc_port": "must be set as server.grpc_port",
    "api_key": "must be set as server.api_keys",
    "allowed_origins": "must be set as server.cors.origins",
    "allowed_methods": "must be left to server.cors",
    "allowed_headers": "must be left to server.cors",
    "allow_credentials": "must be left to server.cors",
    "ssl_certfile": "must be set as server.tls.certificate",
    "ssl_keyfile": "must be set as server.tls.key",
    "ssl_ca_certs": "must be set as server.tls.client_ca",
    "ssl_cert_reqs": _TLS,
    "ssl_ciphers": _TLS,
    "enable_ssl_refresh": "must be left out: a certificate that changes is always read again",
    "root_path": _NO_UVICORN,
    "enable_request_id_headers": "must be left out: every response has X-Request-Id",
    "sse_keep_alive_interval": _NO_UVICORN,
    "enable_server_load_tracking": "must be left to /metrics",
    "disable_fastapi_docs": _NO_UVICORN,
    "enable_offline_docs": _NO_UVICORN,
    "h11_max_incomplete_event_size": _NO_UVICORN,
    "h11_max_header_count": _NO_UVICORN,
    "enable_scale_out": "must be left out: the routes for scale-out are not served",
    "enable_flash_late_interaction": "must be left out: vLLM chooses it for each model",
    "cohere_is_reasoning_model": "must be left out: the route /cohere/v2/chat is not served",
    "cohere_format": "must be set in engine.serving.default_chat_template_kwargs",
    "data_parallel_supervisor_port": _ONE_ROUTER,
    "dp_supervisor_probe_interval_s": _ONE_ROUTER,
    "dp_supervisor_probe_timeout_s": _ONE_ROUTER,
    "dp_supervisor_probe_failure_threshold": _ONE_ROUTER,
}
"""Options of vLLM's front end that ``serving`` does not have, each with what is right instead."""

OWNED: Mapping[str, str] = {
    **{name: f"must be set as {key}" for name, key in KEYS.items()},
    **{name: f"must be set as engine.serving.{name}" for name in ServingConfig.model_fields},
    **FRONT_END,
    "runner": _BY_CLASS,
    "model": "must be set as storage.uri, such as hf://OWNER/NAME",
    "model_weights": _FROM_STORAGE,
    "tokenizer": _FROM_STORAGE,
    "hf_config_path": _FROM_STORAGE,
    "revision": _FROM_STORAGE,
    "code_revision": _FROM_STORAGE,
    "tokenizer_revision": _FROM_STORAGE,
    "download_dir": _FROM_STORAGE,
    "hf_token": _FROM_STORAGE,
    "served_model_name": "must be set as the model's name and aliases",
    "master_port": _PORTS,
    "data_parallel_rpc_port": _PORTS,
    "data_parallel_start_rank": "must be left to layout.nodes",
    "enable_lora": "must be left to adapters, which turn it on",
    "reasoning_parser": "must be set as the model's reasoning_parser",
    "enable_log_requests": _NO_PROMPTS,
    "log_level": _OUR_LOG,
    "log_config_file": _OUR_LOG,
    "logging_config": _OUR_LOG,
}
"""Options of vLLM that ``args`` may not hold, each with what is right instead."""

LOAD_FORMATS = (
    "dummy",
    "fastsafetensors",
    "instanttensor",
    "mistral",
    "runai_streamer",
    "runai_streamer_sharded",
    "safetensors",
    "sharded_state",
)
"""The values of vLLM's ``load_format`` that read safetensors or nothing; the others may unpickle, and so run code."""


_NAME = r"[A-Za-z_]\w*"


class PythonConfig(BaseConfig):
    """A Python class of your own as the engine."""

    python: Annotated[str, text_like(rf"^{_NAME}(\.{_NAME})*:{_NAME}$", "package.module:ClassName")]
    """The model's class as `package.module:ClassName`, a subclass of one of `appliance.openai`. Its module is
    installed, on `PYTHONPATH`, or in the working directory of the server, and is imported when the model is loaded.
    """

    args: Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)] = Field(default_factory=dict)
    """Keyword arguments of the class, in addition to the model's name."""


class OnnxEncoderConfig(BaseConfig):
    """Options of ONNX Runtime, which computes encoders on the CPU."""

    backend: Literal["onnx"]
    """What computes the model: `vllm`, or for an encoder also `onnx`."""

    file: (
        Annotated[
            str, text_like(r"^([\w-][\w.-]*/)*[\w-][\w.-]*\.onnx$", "the path of a file .onnx in the model's directory")
        ]
        | None
    ) = None
    """The model's ONNX file, by its path in the model's directory; unset is `onnx/model.onnx`, or else `model.onnx`.
    Quantized files, such as `onnx/model_quantized.onnx`, are faster and less exact: compare their embeddings first.
    """

    threads: Count | None = None
    """Threads of one batch; unset is the cores that this process may use, divided by `server.workers`."""

    max_model_len: Count | None = None
    """Limit of one text, in tokens; unset is the model's own limit."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names that the ONNX file may have, the first one first."""
        return (self.file,) if self.file else ("onnx/model.onnx", "model.onnx")

    @property
    def include(self) -> tuple[str, ...]:
        """Globs of the files that it loads."""
        weights = (f"{file}{suffix}" for file in self.files for suffix in ("", "_data", ".data"))
        return ("*.json", *weights)


class FrameworkConfig(BaseConfig):
    """A library that computes predictors on the CPU."""

    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the file of a model."""

    patterns: ClassVar[tuple[str, ...]] = ()
    """Globs of files that belong to it."""

    is_pickled: ClassVar[bool] = False
    """Whether its files are pickles, which run code when they are loaded."""

    framework: str

    warmup: Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)] | None = None
    """Body of a prediction in version 1, such as `{"instances": [[1, 2]]}`, whose successful response proves that the
    model works. Unset is one row of zeros, or of texts, if the model's file says which inputs it has; if it does not,
    the model is ready once it is loaded.
    """

    @property
    def include(self) -> tuple[str, ...]:
        """Globs of the files that it loads."""
        return (*(f"*{suffix}" for suffix in self.suffixes), *self.patterns)


class SklearnConfig(FrameworkConfig):
    """A model of scikit-learn: a file `.joblib`, `.pkl` or `.pickle`, which needs `allow_pickle: true`."""

    suffixes = (".joblib", ".pkl", ".pickle")
    is_pickled = True

    framework: Literal["sklearn"]
    """The library that the model was trained with, or ONNX Runtime."""

    predict_proba: bool = False
    """Predict the probability of each class, not the class; a request can choose by its parameter `predict_proba`."""


class XgboostConfig(FrameworkConfig):
    """A model of XGBoost: a file `.json`, `.ubj` or `.bst`."""

    suffixes = (".json", ".ubj", ".bst")

    framework: Literal["xgboost"]
    """The library that the model was trained with, or ONNX Runtime."""

    threads: Count = 1
    """Threads of one prediction; several requests are predicted at once."""


class LightgbmConfig(FrameworkConfig):
    """A model of LightGBM: a file `.txt` or `.bst`."""

    suffixes = (".txt", ".bst")

    framework: Literal["lightgbm"]
    """The library that the model was trained with, or ONNX Runtime."""

    threads: Count = 1
    """Threads of one prediction; several requests are predicted at once."""


class OnnxConfig(FrameworkConfig):
    """A model in ONNX Runtime: a file `.onnx`, and the files of its weights if they are not in it."""

    suffixes = (".onnx",)
    patterns = ("*.onnx_data", "*.onnx.data", "*.data")

    framework: Literal["onnx"]
    """The library that the model was trained with, or ONNX Runtime."""

    threads: Count = 1
    """Threads of one prediction; several requests are predicted at once."""


AnyFramework = Annotated[
    SklearnConfig | XgboostConfig | LightgbmConfig | OnnxConfig,
    Field(discriminator="framework"),
]
"""A framework, by the key `framework`."""

FRAMEWORKS: Mapping[str, type[FrameworkConfig]] = {
    "lightgbm": LightgbmConfig,
    "onnx": OnnxConfig,
    "sklearn": SklearnConfig,
    "xgboost": XgboostConfig,
}
