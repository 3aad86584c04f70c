"""Config of engines: the options of vLLM that people set, all its other arguments, and Python classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue

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


class EngineConfig(BaseConfig):
    """Options of vLLM."""

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

    args: Annotated[dict[str, JsonValue], BeforeValidator(without_free_keys)] = Field(default_factory=dict)
    """Any other engine argument of vLLM, by its Python name, validated against `vllm-engine.schema.json`."""


_FROM_STORAGE = "must be left to storage.uri, which says where the bytes come from"
_OUR_LOG = "must be left to logging, which writes one log for all"

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

OWNED: Mapping[str, str] = {
    **{name: f"must be set as {key}" for name, key in KEYS.items()},
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
    "enable_log_requests": "must be left out: prompts are never logged",
    "log_level": _OUR_LOG,
    "log_config_file": _OUR_LOG,
    "logging_config": _OUR_LOG,
}
"""Engine arguments of vLLM that ``args`` may not hold, each with what is right instead."""

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
