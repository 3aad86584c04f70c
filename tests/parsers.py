"""Every parser of bytes that strangers send, as a table: what it may raise, what it is fed, and what would hurt it.

A new parser is a row. `test_parsers.py` feeds each one with mutated seeds, and `just bench parsing` measures each one
with the shapes it has and those of its seeds, from 1 kB to the limit.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import anthropic
import cohere
import httpx
import httpx2
import msgspec
import openai
from faults.mutants import BODIES
from google.protobuf.message import DecodeError
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from appliance.api import body as bodies
from appliance.api import openai as openai_protocol
from appliance.api.oip import cloud_events, v1, v2
from appliance.api.oip.signatures import parse_inputs
from appliance.config.server import ServerLimitsConfig
from appliance.config.upstreams import RequestRewriteConfig
from appliance.core import multipart
from appliance.core.errors import GatewayError, RequestError
from appliance.core.json_edit import JsonObject, NotAnObjectError
from appliance.core.json_limits import has_more_containers, has_more_members, is_deeper
from appliance.core.model import ModelRequest, Operation
from appliance.core.rewrite import RequestBody, RequestRewriter, rename_response, request_usage
from appliance.models import adapter
from appliance.over_chat import translate
from appliance.proxy.load_balancing import prompt_prefix
from appliance.proxy.stream import EventRewriter
from appliance.python_api import types as python_types
from appliance.tensors.codec import decode, read_request, write_request
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.converters import request_from_message
from appliance.tensors.tensor import InferenceRequest, Tensor

Shape = Callable[[int], bytes]
"""A body of about so many bytes."""

FORM_TYPE = "multipart/form-data; boundary=xYz"
_MOST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Parser:
    """One function of bytes; anything it raises beside `errors` is a fault of ours."""

    name: str
    parse: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    shapes: Mapping[str, Shape] = field(default_factory=dict)


def repeated(unit: bytes, head: bytes = b"", tail: bytes = b"") -> Shape:
    """One thing again and again."""
    return lambda size: head + unit * max(1, (size - len(head) - len(tail)) // len(unit)) + tail


def numbered(unit: bytes, between: bytes, head: bytes, tail: bytes) -> Shape:
    """The same with a number in it, so that no two are alike."""
    return lambda size: head + between.join(unit % n for n in range(max(1, size // (len(unit) + 4)))) + tail


JSON_SHAPES: Mapping[str, Shape] = {
    "text": repeated(b"word ", b'{"model":"m","prompt":"', b'"}'),
    "escapes": repeated(b'\\"', b'{"model":"m","prompt":"', b'"}'),
    "backslashes": repeated(b"\\\\", b'{"model":"m","prompt":"', b'"}'),
    "numbers": repeated(b"0.25,", b'{"model":"m","input":[', b"1]}"),
    "digits": repeated(b"1", b'{"model":"m","input":[', b"]}"),
    "messages": repeated(b'{"role":"user","content":"hi"},', b'{"model":"m","messages":[', b"{}]}"),
    "members": numbered(b'"%d":1', b",", b'{"model":"m",', b"}"),
    "one member": repeated(b'"model":"m",', b"{", b'"a":1}'),
    "members within": numbered(b'"%d":1', b",", b'{"model":"m","options":{', b"}}"),
    "open lists": repeated(b"["),
    "nested 99": repeated(b"[" * 98 + b"]" * 98 + b",", b'{"model":"m","x":[', b"1]}"),
    "empty objects": repeated(b"{},", b'{"model":"m","messages":[', b"{}]}"),
    "quotes": repeated(b'"'),
    "spaces": repeated(b" ", b"{", b'"model":"m"}'),
}
"""What a reader of JSON may not take longer for than for any other body of the size."""

_PART = b'--xYz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FORM_SHAPES: Mapping[str, Shape] = {
    "file": repeated(b"\x00\xff\r\n--xY", _PART % (b"file", b""), b"\r\n--xYz--"),
    "bare boundaries": repeated(b"--xYz"),
    "boundaries on lines": repeated(b"--xYz\r\n", b"", b"\r\n\r\n"),
    "parts": numbered(_PART % (b"f%d", b"v"), b"", b"", b"--xYz--"),
    "one part": repeated(_PART % (b"model", b"m"), b"", b"--xYz--"),
    "header lines": repeated(b"A: b\r\n", b"--xYz\r\n"),
    "one header": repeated(b"A", b"--xYz\r\nA:"),
    "line ends": repeated(b"\r\n", b"--xYz\r\n"),
}


@cache
def of_clients() -> Mapping[str, Sequence[tuple[str, bytes]]]:
    """Bodies that the official clients write, with their content types, by the path they are sent to."""
    sent: dict[str, list[tuple[str, bytes]]] = {}

    def keep(request: httpx.Request | httpx2.Request) -> None:
        sent.setdefault(request.url.path, []).append((request.headers.get("content-type", ""), request.read()))

    def refuse(request: httpx.Request) -> httpx.Response:
        keep(request)
        return httpx.Response(418, json={})

    def refuse2(request: httpx2.Request) -> httpx2.Response:
        keep(request)
        return httpx2.Response(418, json={})

    http2 = httpx2.Client(transport=httpx2.MockTransport(refuse2))
    with httpx.Client(transport=httpx.MockTransport(refuse)) as http, http2:
        ai = openai.OpenAI(api_key="k", base_url="http://x/v1", http_client=http2, max_retries=0)
        claude = anthropic.Anthropic(api_key="k", base_url="http://x", http_client=http2, max_retries=0)
        ranker = cohere.ClientV2(api_key="k", base_url="http://x", httpx_client=http)
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": 'é\n"?'}]}]
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        asked: Sequence[Callable[[], object]] = (
            lambda: ai.chat.completions.create(model="m", messages=messages, tools=[tool], logit_bias={"1": 2}),
            lambda: ai.completions.create(model="m", prompt=["a", "b"], stream=True),
            lambda: ai.responses.create(model="m", input="hi"),
            lambda: ai.embeddings.create(model="m", input=[[1, 2, 3], [4]]),
            lambda: ai.audio.transcriptions.create(
                model="m", file=("a.wav", b"RIFF\x00\xff"), timestamp_granularities=["word", "segment"]
            ),
            lambda: ai.images.edit(model="m", image=[("a.png", b"\x89PNG"), ("b.png", b"")], prompt="more"),
            lambda: claude.messages.create(model="m", messages=messages, max_tokens=8, system="be brief"),
            lambda: ranker.rerank(model="m", query="q", documents=["a", "b"]),
        )
        for ask in asked:
            try:
                ask()
            except (openai.APIStatusError, anthropic.APIStatusError, cohere.core.ApiError):
                continue
            raise AssertionError("nobody refused it; this is a bug of the test")
    return sent


def _json_seeds() -> Sequence[bytes]:
    written = [json.dumps(body).encode() for path, body in sorted(BODIES.items()) if ":" not in path]
    return [*written, *(body for sent in of_clients().values() for kind, body in sent if "json" in kind)]


def _form_seeds() -> Sequence[bytes]:
    sent = [each for every in of_clients().values() for each in every if multipart.is_form(each[0])]
    return [body.replace(kind.partition("boundary=")[2].encode(), b"xYz") for kind, body in sent]


_TENSORS = [Tensor.of_values("in", "FP32", (1, 2), [1.0, 2.0]), Tensor.of_values("t", "BYTES", (2,), ["hi", "é"])]
_BINARY, _SAYS = write_request(InferenceRequest(inputs=_TENSORS))
_BINARY_LENGTH = next(iter(_SAYS.values()))
_MESSAGE = pb.ModelInferRequest(model_name="m", raw_input_contents=[tensor.raw for tensor in _TENSORS])
for _tensor in _TENSORS:
    _MESSAGE.inputs.add(name=_tensor.name, datatype=_tensor.datatype, shape=_tensor.shape)
_EVENT = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"instances": ["hi"]}}
_V2 = [json.dumps(body).encode() for path, body in sorted(BODIES.items()) if path.endswith("/infer")]
_V1 = [json.dumps(body).encode() for path, body in sorted(BODIES.items()) if path.endswith(":predict")]
_TEXTS = b'{"inputs":[{"name":"text_input","datatype":"BYTES","shape":[1],"data":['
_LIMITS = ServerLimitsConfig()
_REWRITER = RequestRewriter(
    RequestRewriteConfig.model_validate(
        {
            "defaults": {"options": {"a": 1}, "temperature": 0.2},
            "override": {"seed": 1},
            "drop": ["user"],
            "system_prompt": "Be brief.",
        }
    )
)


def _gunzip(body: bytes) -> bytes:
    return bodies._decompress(body, _MOST_BYTES)


def _envelope(content_type: str) -> Callable[[bytes], object]:
    return lambda body: openai_protocol._envelope(body, content_type, _LIMITS.form_parts)


def _renamed_form(body: bytes) -> bytes:
    named = RequestBody.of(body, FORM_TYPE)
    made = named.with_model("another")
    was, now = multipart.read_form(body, FORM_TYPE).get("model"), multipart.read_form(made, FORM_TYPE).get("model")
    assert (was is None) == (now is None)
    assert now is None or made[now.span] == b"another"
    return made


def _renamed_json(body: bytes) -> bytes:
    made = RequestBody.of(body, "").with_model("another")
    assert msgspec.json.decode(made, type=dict[str, msgspec.Raw])["model"] == msgspec.Raw(b'"another"')
    return made


def _events(body: bytes) -> bytes:
    rewriter = EventRewriter("another")
    return rewriter.feed(body) + rewriter.finish()


def _rewritten(body: bytes) -> bytes:
    document = JsonObject(body)
    _REWRITER.rewrite(Operation.CHAT_COMPLETION, document)
    return document.write()


def _python_request(body: bytes) -> object:
    return python_types.decode_request(ModelRequest(Operation.CHAT_COMPLETION, body))


def _usage_hidden(body: bytes) -> bytes:
    rewriter = EventRewriter("another", lambda _: None)
    return rewriter.feed(body) + rewriter.finish()


def _v1_instances(body: bytes) -> object:
    return v1._parse_instances(decode(body, v1.PredictionRequest))


def _grpc(body: bytes) -> object:
    return request_from_message(pb.ModelInferRequest.FromString(body))


_TURNS = (
    b'{"max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"b","input":{}}]},'
    b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":[{"type":"text","text":"c"}]}]}],'
    b'"tools":[{"name":"b","input_schema":{}}],"tool_choice":{"type":"tool","name":"b"}}'
)
_ITEMS = (
    b'{"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]},{"type":"custom_tool_call","call_id":"b",'
    b'"name":"c","input":"d"},{"type":"function_call_output","call_id":"b","output":"e"}],"text":{"format":{"type":'
    b'"text"}},"tools":[{"type":"custom","name":"c"},{"type":"namespace","name":"n","tools":[]}]}'
)
_CHAT = (
    b'{"choices":[{"index":0,"delta":{"content":"a","reasoning":"b","tool_calls":[{"index":0,"id":"c","function":'
    b'{"name":"d","arguments":"{}"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1},"error":null}'
)


def _translated_chat(body: bytes) -> object:
    whole = translate(Operation.RESPONSE, b'{"input":"a","tools":[{"type":"custom","name":"d"}]}', "m")
    streamed = translate(Operation.MESSAGE, b'{"messages":[],"stream":true}', "m")
    whole.error(400, body)
    return streamed.feed(body) + streamed.finish(), whole.response(body)


def parsers() -> Sequence[Parser]:
    """The table."""
    wrong, seeds, forms = (RequestError,), _json_seeds(), _form_seeds()
    return (
        Parser("JSON's depth", lambda body: is_deeper(body, 100), (), seeds, JSON_SHAPES),
        Parser("JSON's width", lambda body: has_more_members(body, 1000), (), seeds, JSON_SHAPES),
        Parser("JSON's containers", lambda body: has_more_containers(body, 50_000), (), seeds, JSON_SHAPES),
        Parser("body's shape", lambda body: bodies._require_shape(body, _LIMITS), wrong, seeds, JSON_SHAPES),
        Parser("OpenAI's envelope", _envelope("application/json"), wrong, seeds, JSON_SHAPES),
        Parser("name in JSON", _renamed_json, (NotAnObjectError,), seeds, JSON_SHAPES),
        Parser("rewrite", _rewritten, (NotAnObjectError,), seeds, JSON_SHAPES),
        Parser("head of a prompt", lambda body: prompt_prefix(JsonObject(body)), (NotAnObjectError,), seeds,
               JSON_SHAPES),
        Parser("name in an answer", lambda body: rename_response(body, "n"), (), seeds, JSON_SHAPES),
        Parser("events", _events, (), [b'data: {"model":"m"}\n\n', b"event: a\r\ndata: {}\r\n\r\n"], {
            "events": repeated(b'data: {"model":"m"}\n\n'), "one line": repeated(b"x", b"data: "),
            "line ends": repeated(b"\r\n"), "names": numbered(b'data: {"model":"%d"}', b"\n\n", b"", b""),
        }),
        Parser("usage asked for", lambda body: request_usage(JsonObject(body)), (NotAnObjectError,), seeds,
               JSON_SHAPES),
        Parser("usage in events", _usage_hidden, (), [b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n'], {
            "events": repeated(b'data: {"usage":null,"choices":[]}\n\n'),
            "one line": numbered(b'"%d":1', b",", b'data: {"usage":null,', b"}\n"),
        }),
        Parser("messages over chats", lambda body: translate(Operation.MESSAGE, body, "m"), wrong, [*seeds, _TURNS],
               JSON_SHAPES),
        Parser("responses over chats", lambda body: translate(Operation.RESPONSE, body, "m"), wrong, [*seeds, _ITEMS],
               JSON_SHAPES),
        Parser("chat of an upstream", _translated_chat, (GatewayError,), [_CHAT], JSON_SHAPES),
        Parser("OpenAI's form", _envelope(FORM_TYPE), wrong, forms, FORM_SHAPES),
        Parser("name in a form", _renamed_form, (multipart.FormError,), forms, FORM_SHAPES),
        Parser("adapter's request", adapter._decode, wrong, seeds, JSON_SHAPES),
        Parser("Python model's request", _python_request, wrong, seeds, JSON_SHAPES),
        Parser("tensors in JSON", lambda body: parse_inputs(read_request(body)), wrong, _V2, {
            **JSON_SHAPES, "texts": repeated(b'"a",', _TEXTS, b'"a"]}]}'),
            "lists": repeated(b"[1],", b'{"inputs":[{"name":"a","datatype":"INT8","shape":[1],"data":[', b"[1]]}]}"),
        }),
        Parser("tensors in binary", lambda body: read_request(body, _BINARY_LENGTH), wrong, [_BINARY]),
        Parser("first version's request", _v1_instances, wrong, _V1, {
            **JSON_SHAPES, "instances": repeated(b'{"text_input":"a"},', b'{"instances":[', b'{"text_input":"a"}]}'),
        }),
        Parser("generate's request", lambda body: v2._parse(body, "m"), wrong,
               [b'{"text_input":"hi"}'], JSON_SHAPES),
        Parser("event", lambda body: cloud_events.unwrap(body, {"content-type": "application/cloudevents+json"}), wrong,
               [json.dumps(_EVENT).encode()], JSON_SHAPES),
        Parser("gRPC message", _grpc, (RequestError, DecodeError), [_MESSAGE.SerializeToString()], {
            "inputs": repeated(b"\x2a\x00"), "raw contents": repeated(b"\x3a\x00"),
        }),
        Parser("compression", _gunzip, (RequestError, RequestEntityTooLarge),
               [gzip.compress(b"{}", mtime=0), zlib.compress(b"[]" * 99)],
               {"bomb": lambda size: zlib.compress(bytes(min(size, _MOST_BYTES // 64) * 128)),
                "head": repeated(b"\x1f\x8b\x08\x00")}),
    )  # fmt: skip
