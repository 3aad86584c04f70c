"""A predictor from a bucket of Google's, served by the command and asked over HTTP and gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from predictors.conftest import ROWS
from predictors.test_plan import plan
from server_process import ServerProcess, free_port
from storage.servers import gcs

from appliance.tensors.codec import LENGTH_HEADER, write_request
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.tensors.tensor import InferenceRequest, Tensor

KEY = "key-of-an-operator-0123456789abcdef"
OPERATOR = {"Authorization": f"Bearer {KEY}"}

WHOLE_FILE = f"""
models:
  - name: iris
    class: predictor
    storage: {{uri: "gs://{gcs.BUCKET}/iris/model.joblib", allow_pickle: true}}
    engine: {{framework: sklearn}}
"""

FLOWERS = Tensor.of_raw("input-0", "FP64", (2, 4), np.array(ROWS).tobytes())


@dataclass(frozen=True)
class Served:
    """The server, and what `plan` says of the file before."""

    server: ServerProcess
    grpc_port: int
    plan: dict[str, Any]
    size: int

    def get(self, path: str) -> httpx.Response:
        """As an operator."""
        return httpx.get(self.server.url + path, headers=OPERATOR)

    def post(self, path: str, **content: Any) -> httpx.Response:
        """As an operator."""
        headers = {**OPERATOR, **content.pop("headers", {})}
        return httpx.post(self.server.url + path, headers=headers, timeout=60, **content)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_files: Path, shop: Path) -> Iterator[Served]:
    """The file with a second model, which refuses zeros, and a key."""
    folder = tmp_path_factory.mktemp("served")
    file, larger = folder / "config.yaml", folder / "larger.yaml"
    file.write_text(WHOLE_FILE)
    second = {
        "name": "shop",
        "class": "predictor",
        "storage": {"uri": str(shop), "allow_pickle": True},
        "engine": {"framework": "sklearn"},
    }
    keys = {"api_keys": [{"name": "operator", "value": KEY, "admin": True}], "grpc_port": (grpc_port := free_port())}
    larger.write_text(f"{WHOLE_FILE}  - {json.dumps(second)}\nserver: {json.dumps(keys)}\n")
    data = (model_files / "sklearn/model.joblib").read_bytes()
    with gcs.fake_gcs_server(folder) as bucket:
        bucket.put("iris/model.joblib", data)
        entry = {"anonymous": True, "endpoint_url": bucket.url}
        overrides = (f"storage.credentials.gcs={json.dumps([entry])}", f"storage.cache_dir={folder / 'cache'}")
        words = [word for each in overrides for word in ("--set", each)]
        (planned,) = json.loads(plan(file, "--format", "json", *words))
        server = ServerProcess(larger, folder / "log", *overrides)
        try:
            yield Served(server.wait_until_ready(120), grpc_port, planned, len(data))
        finally:
            server.stop()


def test_the_plan_has_the_bytes_in_the_bucket(served: Served) -> None:
    """Before anything is downloaded."""
    assert (served.plan["framework"], served.plan["disk_bytes"]) == ("sklearn", served.size)


def test_both_versions_answer(served: Served) -> None:
    """As KServe's clients ask."""
    first = served.post("/v1/models/iris:predict", json={"instances": ROWS})
    tensor = {"name": "input-0", "datatype": "FP64", "shape": [2, 4], "data": ROWS}
    second = served.post("/v2/models/iris/infer", json={"inputs": [tensor]})

    assert first.json() == {"predictions": [0, 2]}
    assert second.json()["outputs"] == [{"name": "output-0", "datatype": "INT64", "shape": [2], "data": [0, 2]}]


def test_tensors_may_be_binary(served: Served) -> None:
    """In the request, and in the response that asks for it."""
    body, headers = write_request(InferenceRequest([FLOWERS], parameters={"binary_data_output": True}))
    response = served.post("/v2/models/iris/infer", content=body, headers=headers)
    rest = response.content[int(response.headers[LENGTH_HEADER]) :]

    assert np.frombuffer(rest, "<i8").tolist() == [0, 2]


def test_a_large_batch_answers(served: Served) -> None:
    """Of many more rows than a page has, without JSON numbers."""
    many = np.tile(np.array(ROWS), (20_000, 1))
    body, headers = write_request(InferenceRequest([Tensor.of_raw("x", "FP64", many.shape, many.tobytes())]))
    (output,) = served.post("/v2/models/iris/infer", content=body, headers=headers).json()["outputs"]

    assert output["data"] == [0, 2] * 20_000


def test_grpc_answers(served: Served) -> None:
    """Metadata and predictions; a wrong number of columns is INVALID_ARGUMENT."""

    def infer(columns: int) -> Any:
        tensor = {"name": "x", "datatype": "FP64", "shape": [1, columns]}
        raw = np.array(ROWS[0][:columns]).tobytes()
        request = pb.ModelInferRequest(model_name="iris", inputs=[tensor], raw_input_contents=[raw])
        return client.ModelInfer(request, metadata=list({"authorization": OPERATOR["Authorization"]}.items()))

    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        client: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        answer = infer(4)
        with pytest.raises(grpc.RpcError) as raised:
            infer(3)
    error: Any = raised.value

    assert [*answer.outputs[0].shape] == [1]
    assert np.frombuffer(answer.raw_output_contents[0], "<i8").tolist() == [0]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "3 features" in error.details()


def test_a_model_that_refuses_zeros_is_ready_and_says_so(served: Served) -> None:
    """With the remedy for all, and the exception for operators and the log; its metadata promises no types."""
    (known,) = [each for each in served.get("/readyz").json()["models"] if each["name"] == "shop"]
    unknown = httpx.get(f"{served.server.url}/readyz")
    (event,) = [each for each in served.server.events() if each["event"] == "model.unproven"]
    metadata = served.get("/v2/models/shop").json()

    assert known["state"] == "ready"
    assert "set engine.warmup" in known["reason"]
    assert "isnan" in known["reason"]
    assert event["reason"] == known["reason"]
    assert unknown.status_code == 200
    assert "isnan" not in unknown.text
    assert metadata["inputs"] == metadata["outputs"] == []
    assert metadata["parameters"]["columns"] == ["colour", "size"]
