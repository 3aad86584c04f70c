"""A grammar of requests that are almost right: well-formed ones of every route, and what can be done to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

MESSAGES = [{"role": "user", "content": "hi"}]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_TENSOR = {"name": "in", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
_TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}

BODIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {
        "model": "talker",
        "messages": MESSAGES,
        "max_tokens": 2,
        "temperature": 0.5,
        "stream": False,
        "n": 1,
        "tools": [_TOOL],
        "stop": ["x"],
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    },
    "/openai/v1/completions": {"model": "talker", "prompt": ["hi"], "max_tokens": 2, "stream": False, "echo": True},
    "/v1/embeddings": {"model": "counter", "input": ["a", "b"], "encoding_format": "float", "dimensions": 1},
    "/v1/responses": {"model": "talker", "input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"model": "talker", "messages": MESSAGES, "max_tokens": 2, "system": "be brief"},
    "/tokenize": {"model": "talker", "prompt": "hi"},
    "/detokenize": {"model": "talker", "tokens": [1, 2]},
    "/rerank": {"model": "tensors", "query": "q", "documents": ["a", "b"], "top_n": 1},
    "/v2/rerank": {"model": "tensors", "query": "q", "documents": ["a"]},
    "/score": {"model": "tensors", "text_1": "a", "text_2": ["b"]},
    "/classify": {"model": "counter", "input": ["a"]},
    "/pooling": {"model": "counter", "input": "a"},
    "/v1/models/doubling:predict": {"instances": [[1, 2], [3, 4]]},
    "/v1/models/doubling:explain": {"instances": [[1]]},
    "/v1/models/talker:predict": {"instances": ["hi"]},
    "/v2/models/doubling/infer": {"id": "1", "inputs": [_TENSOR], "outputs": [{"name": "doubled"}]},
    "/v2/models/counter/infer": {"inputs": [_TEXT], "parameters": {"binary_data_output": True}},
    "/v2/models/talker/generate": {"text_input": "hi", "parameters": {"max_tokens": 2}},
    "/v2/models/talker/generate_stream": {"text_input": "hi"},
    "/v2/repository/index": {"ready": True},
}
"""A good request for each route that takes a body."""

MODELS = ("talker", "counter", "doubling", "elsewhere", "prompted", "adapted", "tensors", "nobody", "../x", "")

# JSON that means trouble: numbers at edges, texts no codec likes, and containers where none is expected.
_EDGES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**200, 1e308, -0.0, 0.1, "", " ", "\x00", "\ud800", "é" * 99,
     "true", "-1", [], [[]], {}, {"": {}}, [None], [[[[]]]], {"type": "x"}, "{{ 7 * 7 }}", "%s%n", "A" * 5000]
)  # fmt: skip
_NOTHING = object()
_VALUES = _EDGES | st.recursive(
    _EDGES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@dataclass(frozen=True)
class Mutant:
    """One request."""

    path: str
    body: bytes
    headers: Mapping[bytes, bytes]


def _places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, each in inner for place in _places(each, (*here, key)))]


def _changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1 and new is _NOTHING:
        del copy[place[0]]
    else:
        copy[place[0]] = _changed(value[place[0]], place[1:], new)
    return copy


@st.composite
def _bodies(draw: st.DrawFn, body: Any) -> bytes:
    if "model" in body and draw(st.booleans()):
        body = {**body, "model": draw(st.sampled_from(MODELS))}
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(_places(body)))
        body = _changed(body, place, draw(_VALUES | (st.just(_NOTHING) if place else st.nothing())))
        if not isinstance(body, dict | list):
            break
    return _cut(draw, json.dumps(body).encode())


def _cut(draw: st.DrawFn, text: bytes) -> bytes:
    """What happens to the bytes."""
    match draw(st.integers(0, 9)):
        case 0:
            return text[: draw(st.integers(0, len(text)))]
        case 1:
            at = draw(st.integers(0, len(text)))
            return text[:at] + draw(st.binary(min_size=1, max_size=4)) + text[at:]
        case 2:
            return draw(
                st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b"\xef\xbb\xbf" + text, text * 2, b""])
            )
        case 3:
            return text.replace(b":", b":" + draw(st.sampled_from([b"NaN,", b"1e999", b"-", b"/**/", b"\x00"])), 1)
        case _:
            return text


_HEADERS = st.sampled_from(
    [
        {},
        {},
        {},
        {b"Content-Type": b"text/plain"},
        {b"Content-Type": b"multipart/form-data"},
        {b"Content-Type": b"multipart/form-data; boundary=x"},
        {b"Content-Type": b"application/cloudevents+json"},
        {b"Content-Encoding": b"gzip"},
        {b"Inference-Header-Content-Length": b"20"},
        {b"Inference-Header-Content-Length": b"-1"},
        {b"Ce-Id": b"1", b"Ce-Type": b"\xff", b"Ce-Source": b"x", b"Ce-Specversion": b"9"},
        {b"Accept": b"text/event-stream"},
    ]
)


@st.composite
def mutants(draw: st.DrawFn) -> Mutant:
    """A request that may be right, and mostly is not."""
    path = draw(st.sampled_from(sorted(BODIES)))
    return Mutant(path, draw(_bodies(BODIES[path])), draw(_HEADERS))
