"""Every parser of what a model's files, a config, or an upstream say, as rows of the table of `parsers.py`."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import zstandard
from jinja2 import StrictUndefined
from parsers import Parser

from appliance.adapters.http_service import JmesPath, PathFaultError
from appliance.adapters.templates import TemplateFaultError, compile_template, create_environment, undeclared_variables
from appliance.config import load
from appliance.config.layout import LayoutConfig
from appliance.config.yaml_parser import read as read_document
from appliance.core.errors import ApplianceError, ArtifactCorruptError, ConfigError, GatewayError, StorageError
from appliance.core.sse import read_json
from appliance.planner.expected_tensors import expected_tensors
from appliance.planner.gguf_header import read_gguf
from appliance.planner.layouts import constraint_violations
from appliance.planner.model_config import Architecture
from appliance.planner.model_info import corrupt_if_invalid
from appliance.planner.safetensors_header import TensorInfo, read_config, read_tensors
from appliance.planner.weight_sharding import group_tensors, weight_bytes_by_rank
from appliance.proxy.response import content_decoder
from appliance.storage import lockfile, manifest
from appliance.storage.file_reader import FileRange

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "num_local_experts": 4,
    "torch_dtype": "bfloat16",
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 16,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "text_config": None,
}
LATENT = {
    **CONFIG,
    "model_type": "deepseek_v3",
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}

# Above it, a model's tensors are too many to make them for each mutant.
_MOST_EXPECTED = 2000


@dataclass(frozen=True)
class Held:
    """Files of a model in memory, for a look."""

    held: dict[str, bytes]
    location: str = "memory"
    is_local: bool = True

    @property
    def files(self) -> dict[str, int]:
        """Their sizes."""
        return {name: len(raw) for name, raw in self.held.items()}

    def read(self, ranges: Sequence[FileRange]) -> list[bytes]:
        """Their bytes."""
        return [self.held[each.name][each.start : each.end] for each in ranges]


def _config(body: bytes) -> None:
    config, _ = read_config(Held({"config.json": body}))
    with corrupt_if_invalid("memory"):
        model = Architecture(config)
    constraint_violations(model, LayoutConfig(tensor_parallel=2))
    if model.layers * (model.experts + 1) < _MOST_EXPECTED:
        with corrupt_if_invalid("memory"):
            tensors = expected_tensors(model)
        _cut(tensors)


def _cut(tensors: list[TensorInfo]) -> None:
    model = Architecture(CONFIG)
    weight_bytes_by_rank(group_tensors(tensors, model), model, LayoutConfig(tensor_parallel=2), "BF16")


def _file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _header(body: bytes) -> None:
    _cut(read_tensors(Held({"model.safetensors": _file(body) + bytes(23040)}))[0])


def _safetensors(body: bytes) -> None:
    _cut(read_tensors(Held({"model.safetensors": body}))[0])


def _index(body: bytes) -> None:
    files = {
        "model.safetensors.index.json": body,
        "a.safetensors": _file(_HEADER) + bytes(23040),
        "b.safetensors": _file(b"{}"),
    }
    read_tensors(Held(files))


def _gguf(body: bytes) -> None:
    config, tensors, _ = read_gguf(Held({"model.gguf": body}), "model.gguf")
    with corrupt_if_invalid("memory"):
        Architecture(config)
    _cut(tensors)


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def parse(body: bytes) -> object:
        with TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(body)
            return read(Path(folder) / name)

    return parse


def _template(body: bytes) -> None:
    environment = create_environment(StrictUndefined)
    source = body.decode("utf-8", "replace")
    compile_template(environment, source)
    undeclared_variables(environment, source)


def _events(*, has_events: bool) -> Callable[[bytes], object]:
    async def stream(body: bytes) -> AsyncGenerator[bytes]:
        yield body[: len(body) // 2]
        yield body[len(body) // 2 :]

    async def read(body: bytes) -> None:
        async for _ in read_json(stream(body), has_events=has_events, max_bytes=1000):
            pass

    return lambda body: asyncio.run(read(body))


def _decoded(coding: str) -> Callable[[bytes], object]:
    def parse(body: bytes) -> bool:
        undoing = content_decoder(coding)
        assert undoing is not None
        for _ in undoing.feed(body):
            pass
        return undoing.is_at_end

    return parse


def _found(find: Callable[[object], object]) -> Callable[[bytes], object]:
    def parse(body: bytes) -> object:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            # What is no JSON is refused before.
            return None
        return find(answer)

    return parse


def _path(body: bytes) -> object:
    return JmesPath(body.decode("utf-8", "replace")).find({"a": [{"b": 1}, {"b": "c"}], "d": None})


def _gguf_seed() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    sizes = {"block_count": 2, "embedding_length": 64, "attention.head_count": 8, "feed_forward_length": 128}
    values = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    values += [text(f"llama.{name}") + struct.pack("<II", 4, size) for name, size in sizes.items()]
    values.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"))
    tensor = text("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 64, 64, 1, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(values)) + b"".join(values) + tensor


_HEADER = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "model.layers.0.self_attn.q_proj.weight": {"dtype": "BF16", "shape": [64, 64], "data_offsets": [0, 8192]},
        "model.layers.1.mlp.experts.3.down_proj.qweight": {
            "dtype": "I32",
            "shape": [8, 64],
            "data_offsets": [8192, 10240],
        },
        "model.embed_tokens.weight": {"dtype": "BF16", "shape": [100, 64], "data_offsets": [10240, 23040]},
    }
).encode()
_LOCK = {"version": 1, "storages": [{"uri": "hf://a/b", "files": {"config.json": {"size": 1, "sha256": "00"}}}]}
_MANIFEST = {"source": "hf://a/b", "files": {"config.json": {"size": 1, "sha256": "00"}}}
_YAML = b"""\
# A model.
models:
- {name: one, class: generative, engine: {python: "a:B", args: &args {k: [1, 2.5, true, ~]}}}
- name: two
  class: proxy
  upstreams: [{url: "http://localhost:1/v1"}]
  limits: {concurrent: 1}
server: {port: 8080, drain_seconds: 0x10}
logging:
  level: >-
    info
"""
_TEMPLATE = b"""\
{%- for message in messages if message.role != 'x' %}{{ message['content'] | trim }}{% endfor %}
{% macro f(a, b=1) %}{{ a ~ b }}{% endmacro %}{{ f(tools | tojson) }}{% set ns = namespace(x=0) %}
"""
_ANSWER = b'{"text": "hi", "count": 3, "scores": [1, 2.5], "vectors": [[1, 2], [3]]}'
_NUMBERS = ("1e999", "-1e999", "NaN", "1" + "0" * 400, "-1", "1.5", "[1e999]", f"[[1{'0' * 400}]]")
_ODD = [f'{{"text": {each}, "count": {each}, "scores": [{each}], "vectors": [[{each}]]}}'.encode() for each in _NUMBERS]
_EVENTS = b': hi\nevent: a\ndata: {"a":\ndata: 1}\n\ndata: [DONE]\n\n'


def _odd(config: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """One that is wrong in one value, for each."""
    values: Sequence[object] = (-1, 0, 1e999, 10**400, "a", [], {}, [None], {"a": []}, True, None)
    for key in config:
        for value in values:
            yield {**config, key: value}


def _odd_headers() -> Iterator[bytes]:
    for shape in ("[1e999]", "[-1]", '["a"]', "5", "[1.5]", "[true]", f"[{2**62}, 4]", "{}", f"[1{'0' * 400}]", "null"):
        yield b'{"lm_head.weight": {"dtype": "BF16", "shape": %s, "data_offsets": [0, 1]}}' % shape.encode()
    yield b'{"lm_head.weight": {"dtype": ["BF16"], "shape": [1]}}'
    yield b'{"lm_head.weight": []}'


def _manifest(file: Path) -> object:
    return manifest.read(file.parent)


def file_parsers() -> Sequence[Parser]:
    """The rows."""
    corrupt, config = (ArtifactCorruptError,), (ConfigError,)
    configs = [json.dumps(each).encode() for each in (CONFIG, LATENT, *_odd(CONFIG), *_odd(LATENT))]
    index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()
    artifact = manifest.FileList("hf://a/b", {"config.json": manifest.FileInfo(1, "00")})
    sealed = json.dumps({**_MANIFEST, "digest": artifact.digest}).encode()
    return (
        Parser("config.json", _config, corrupt, configs),
        Parser("safetensors header", _header, corrupt, [_HEADER, *_odd_headers()]),
        Parser("safetensors file", _safetensors, corrupt, [_file(_HEADER) + bytes(23040)]),
        Parser("safetensors index", _index, corrupt, [index]),
        Parser("GGUF", _gguf, corrupt, [_gguf_seed()]),
        Parser("lock", _in_file("appliance.lock", lockfile.read), (StorageError,), [json.dumps(_LOCK).encode()]),
        Parser("manifest", _in_file(manifest.MARKER, _manifest), (), [sealed]),
        Parser("YAML", _in_file("config.yaml", read_document), config, [_YAML]),
        Parser("config", _in_file("config.yaml", lambda file: load(file, environ={})), config, [_YAML]),
        Parser("template", _template, (TemplateFaultError,), [_TEMPLATE]),
        Parser("target's events", _events(has_events=True), (GatewayError,), [_EVENTS]),
        Parser("target's lines", _events(has_events=False), (GatewayError,), [b'{"a": 1}\n[2]\r\n']),
        Parser("gzip of an upstream", _decoded("gzip"), (GatewayError,), [gzip.compress(b"{}", mtime=0) * 2]),
        Parser("deflate of an upstream", _decoded("deflate"), (GatewayError,), [zlib.compress(b"[]" * 99)]),
        Parser("zstd of an upstream", _decoded("zstd"), (GatewayError,), [zstandard.compress(b"[]" * 99)]),
        Parser("text in an answer", _found(JmesPath("text").text), (GatewayError,), [_ANSWER, *_ODD]),
        Parser("count in an answer", _found(JmesPath("count").count), (GatewayError,), [_ANSWER, *_ODD]),
        Parser("scores in an answer", _found(JmesPath("scores").scores), (GatewayError,), [_ANSWER, *_ODD]),
        Parser("vectors in an answer", _found(JmesPath("vectors").vectors), (GatewayError,), [_ANSWER, *_ODD]),
        Parser("sum in an answer", _found(JmesPath("sum(scores)").find), (GatewayError,), [_ANSWER, *_ODD]),
        Parser(
            "path",
            _path,
            (PathFaultError, ApplianceError),
            [b"a[?b=='c'].b | [0]", b"sort_by(a, &b)[*].b", b"9" * 5000],
        ),
    )
