"""Predictors that were written for KServe answer here as they do there."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Any

import grpc
import httpx
import pytest
from reference_servers import Reference

from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

# The first request of a server on a loaded machine may import for long.
options = partial(httpx.options, timeout=60)
post = partial(httpx.post, timeout=60)


def tensor(datatype: str, data: list[Any], name: str = "a", **fields: Any) -> dict[str, Any]:
    """An input of this many elements."""
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data, **fields}


IMAGE = bytes([0, 51, 255])
IMAGE_TEXT = base64.b64encode(IMAGE).decode()

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v1 numbers": ("/v1/models/model:predict", {"instances": [[1, 2.5], [3, 4]]}),
    "v1 texts": ("/v1/models/model:predict", {"instances": ["a", "b"]}),
    "v1 rows": ("/v1/models/model:predict", {"instances": [[{"x": 1, "y": 2}], [{"x": 3, "y": 4}]]}),
    "v1 invalid": ("/v1/models/model:predict", {"instances": ["invalid"]}),
    "v1 failure": ("/v1/models/model:predict", {"instances": ["failure"]}),
    "v1 missing": ("/v1/models/model:predict", {"instances": ["missing"]}),
    "v2 numbers": ("/v2/models/model/infer", {"id": "7", "inputs": [tensor("FP64", [1, 2.5])]}),
    "v2 whole numbers": ("/v2/models/model/infer", {"id": "7", "inputs": [tensor("INT32", [1, 2])]}),
    "v2 texts": ("/v2/models/model/infer", {"id": "7", "inputs": [tensor("BYTES", ["a", "é"])]}),
    "v2 two inputs": (
        "/v2/models/model/infer",
        {"id": "7", "inputs": [tensor("FP64", [1]), tensor("INT64", [9], "b")]},
    ),
    "v2 frame": (
        "/v2/models/model/infer",
        {"id": "7", "parameters": {"content_type": "pd"}, "inputs": [tensor("INT64", [1, 2])]},
    ),
    "v2 invalid": ("/v2/models/model/infer", {"id": "7", "inputs": [tensor("BYTES", ["invalid"])]}),
    "v1 image": ("/v1/models/image:predict", {"instances": [{"image": {"b64": IMAGE_TEXT}}]}),
    "v1 prepared image": ("/v1/models/image:predict", {"instances": [{"data": [0.5, 1]}]}),
    "v1 no image": ("/v1/models/image:predict", {"images": []}),
    "v2 image": ("/v2/models/image/infer", {"id": "7", "inputs": [tensor("BYTES", [IMAGE_TEXT])]}),
    "v2 prepared image": (
        "/v2/models/image/infer",
        {"id": "7", "inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1]}]},
    ),
    "v1 stream": ("/v1/models/words:predict", {"instances": ["one two three"]}),
    "v1 engine": ("/v1/models/engine:predict", {"instances": []}),
}


HEADERS = ("x-kind", "x-tenant", "x-type", "x-images")
"""Those that the model sets."""


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_kserves_server(theirs: Reference, ours: Reference, name: str) -> None:
    """Status, body and the model's headers."""
    path, body = REQUESTS[name]
    answers = [post(each.url + path, json=body, headers={"x-tenant": "blue"}) for each in (theirs, ours)]
    seen = [(each.status_code, _content(each), [each.headers.get(name) for name in HEADERS]) for each in answers]

    assert seen[1] == seen[0]


def test_unsupported_is_an_error_of_the_client(ours: Reference) -> None:
    """KServe has 501."""
    answer = post(f"{ours.url}/v1/models/model:predict", json={"instances": ["unsupported"]})

    assert answer.status_code == 400


@pytest.mark.parametrize("is_raw", [False, True])
def test_messages_are_those_of_kserves_server(theirs: Reference, ours: Reference, is_raw: bool) -> None:
    """Raw if the inputs were raw."""
    request = pb.ModelInferRequest(model_name="model", id="7")
    given = request.inputs.add(name="a", datatype="FP32", shape=[2])
    if is_raw:
        request.raw_input_contents.append(b"\0\0\x80\x3f\0\0\0\x40")
    else:
        given.contents.fp32_contents.extend([1, 2])

    answers = [_infer(server, request) for server in (theirs, ours)]
    assert answers[0] == answers[1]


EVENT = {"ce-id": "1", "ce-source": "test", "ce-type": "test.request"}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "image/png"}, b"\x89PNG"),
        ({"content-type": "text/xml", "ce-specversion": "1.0", **EVENT}, b"<a/>"),
        ({"content-type": "image/png", "ce-specversion": "1.0", **EVENT}, b"\x89PNG"),
    ],
)
def test_bodies_that_are_not_json_are_bytes(
    theirs: Reference, ours: Reference, headers: dict[str, str], body: bytes
) -> None:
    """Those of events, too."""
    answers = [post(f"{each.url}/v1/models/words:predict", content=body, headers=headers) for each in (theirs, ours)]
    kinds = [[each.headers.get(name) for name in ("ce-type", "ce-source", "ce-specversion")] for each in answers]

    assert [each.status_code for each in answers] == [200, 200]
    assert [each.content for each in answers] == [body[::-1]] * 2
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("data", "content"),
    [
        ({"datacontenttype": "text/xml", "data": "<a/>"}, b"<a/>"),
        ({"datacontenttype": "image/png", "data_base64": IMAGE_TEXT}, IMAGE),
    ],
)
def test_structured_events_have_other_data_too(ours: Reference, data: dict[str, str], content: bytes) -> None:
    """As texts and in base64; what a model returns as bytes comes back in base64."""
    event = {"specversion": "1.0", "id": "1", "source": "test", "type": "test.request", **data}
    headers = {"content-type": "application/cloudevents+json"}
    answer = post(f"{ours.url}/v1/models/words:predict", content=json.dumps(event), headers=headers)
    body = answer.json()

    assert body["datacontenttype"] == "application/octet-stream"
    assert base64.b64decode(body["data_base64"]) == content[::-1]


def test_an_image_over_grpc_is_bytes(theirs: Reference, ours: Reference) -> None:
    """And not a text in base64."""
    request = pb.ModelInferRequest(model_name="image", id="7")
    request.inputs.add(name="a", datatype="BYTES", shape=[1]).contents.bytes_contents.append(IMAGE)

    answers = [_infer(server, request) for server in (theirs, ours)]
    assert answers[0] == answers[1]
    assert answers[1].outputs[0].shape == [1]


def test_a_mapping_of_a_message_is_a_response(theirs: Reference, ours: Reference) -> None:
    """As a sample returns it over gRPC."""
    request = pb.ModelInferRequest(model_name="message", id="7")
    request.inputs.add(name="a", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])

    answers = [_infer(server, request) for server in (theirs, ours)]
    assert answers[0] == answers[1]
    assert list(answers[1].outputs[0].contents.fp32_contents) == [1, 2]


def test_the_applications_middleware_allows_origins(theirs: Reference, ours: Reference) -> None:
    """To pages that send JSON."""
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    answers = [options(f"{each.url}/v1/models/model:predict", headers=asked) for each in (theirs, ours)]

    assert [each.headers["access-control-allow-origin"] for each in answers] == ["https://page.example"] * 2


def _infer(server: Reference, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """The response over gRPC, without what the servers are free to choose."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        response: pb.ModelInferResponse = stub.ModelInfer(request, timeout=60)
    response.model_version = ""
    response.outputs[0].ClearField("parameters")
    return response


def _content(answer: httpx.Response) -> Any:
    return _without_empty(answer.json()) if answer.text.startswith("{") else answer.text


def _without_empty(body: dict[str, Any]) -> dict[str, Any]:
    """A body without fields that one of both leaves out, and the versions that KServe lacks."""
    outputs = [_without_empty(each) for each in body.get("outputs", [])]
    kept = {k: v for k, v in body.items() if v is not None and k not in {"model_version", "parameters"}}
    return {**kept, **({"outputs": outputs} if outputs else {})}
