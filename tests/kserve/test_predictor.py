"""A predictor that was written for KServe answers here as it does there."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest
from reference_servers import Reference

from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub


def tensor(datatype: str, data: list[Any], name: str = "a", **fields: Any) -> dict[str, Any]:
    """An input of this many elements."""
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data, **fields}


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
}


HEADERS = ("x-kind", "x-tenant", "x-type")
"""Those that the model sets."""


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_kserves_server(theirs: Reference, ours: Reference, name: str) -> None:
    """Status, body and the model's headers."""
    path, body = REQUESTS[name]
    answers = [httpx.post(each.url + path, json=body, headers={"x-tenant": "blue"}) for each in (theirs, ours)]
    seen = [
        (each.status_code, _without_empty(each.json()), [each.headers.get(name) for name in HEADERS])
        for each in answers
    ]

    assert seen[1] == seen[0]


def test_unsupported_is_an_error_of_the_client(ours: Reference) -> None:
    """KServe has 501."""
    answer = httpx.post(f"{ours.url}/v1/models/model:predict", json={"instances": ["unsupported"]})

    assert answer.status_code == 400


@pytest.mark.parametrize("is_raw", [False, True])
def test_messages_are_those_of_kserves_server(theirs: Reference, ours: Reference, is_raw: bool) -> None:
    """Raw if the inputs were raw."""
    answers = []
    for server in (theirs, ours):
        request = pb.ModelInferRequest(model_name="model", id="7")
        given = request.inputs.add(name="a", datatype="FP32", shape=[2])
        if is_raw:
            request.raw_input_contents.append(b"\0\0\x80\x3f\0\0\0\x40")
        else:
            given.contents.fp32_contents.extend([1, 2])
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            response = stub.ModelInfer(request, timeout=10)
        response.model_version = ""
        response.outputs[0].ClearField("parameters")
        answers.append(response)

    assert answers[0] == answers[1]


def _without_empty(body: dict[str, Any]) -> dict[str, Any]:
    """A body without fields that one of both leaves out, and the versions that KServe lacks."""
    outputs = [_without_empty(each) for each in body.get("outputs", [])]
    kept = {k: v for k, v in body.items() if v is not None and k not in {"model_version", "parameters"}}
    return {**kept, **({"outputs": outputs} if outputs else {})}
