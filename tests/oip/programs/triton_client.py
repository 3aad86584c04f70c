"""What tritonclient sends, row by row, for its own environment.

``python triton_client.py HTTP_PORT GRPC_PORT MODEL`` asks a model that doubles numbers and raises texts, and prints one
JSON object: for each row "ok", or what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tritonclient.grpc
import tritonclient.http
from rows import GRPC, HTTP, MODEL, row, show
from tritonclient.utils import InferenceServerException

NUMBERS = np.array([[1.5, -2.0], [0.25, 8.0]], dtype=np.float32)
TEXTS = np.array([b"abc", "日".encode()], dtype=object)
DATATYPES = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64")


def _http() -> tritonclient.http.InferenceServerClient:
    return tritonclient.http.InferenceServerClient(f"127.0.0.1:{HTTP}", network_timeout=30)


def _grpc() -> tritonclient.grpc.InferenceServerClient:
    return tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{GRPC}")


def _input(kind, array, datatype, **more):
    made = kind.InferInput("in", list(array.shape), datatype)
    made.set_data_from_numpy(array, **more)
    return [made]


def _refusal(work: Callable[[], object]) -> InferenceServerException:
    try:
        work()
    except InferenceServerException as error:
        return error
    raise AssertionError("it answered")


def _is(array, expected) -> None:
    assert array is not None, "no output"
    assert np.array_equal(array, expected), array


@row
def http_health_and_metadata() -> None:
    client = _http()
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.get_server_metadata()["name"]
    assert client.get_model_metadata(MODEL)["name"] == MODEL


@row
def grpc_health_and_metadata() -> None:
    client = _grpc()
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.get_server_metadata().name
    assert client.get_model_metadata(MODEL).name == MODEL


@row
def http_infer_binary() -> None:
    wanted = [tritonclient.http.InferRequestedOutput("out", binary_data=True)]
    answer = _http().infer(MODEL, _input(tritonclient.http, NUMBERS, "FP32"), outputs=wanted, request_id="7")
    _is(answer.as_numpy("out"), NUMBERS * 2)
    assert answer.get_response()["id"] == "7"


@row
def http_infer_json() -> None:
    wanted = [tritonclient.http.InferRequestedOutput("out", binary_data=False)]
    inputs = _input(tritonclient.http, NUMBERS, "FP32", binary_data=False)
    _is(_http().infer(MODEL, inputs, outputs=wanted).as_numpy("out"), NUMBERS * 2)


@row
def http_bytes_json() -> None:
    wanted = [tritonclient.http.InferRequestedOutput("out", binary_data=False)]
    inputs = _input(tritonclient.http, TEXTS, "BYTES", binary_data=False)
    _is(_http().infer(MODEL, inputs, outputs=wanted).as_numpy("out"), np.array(["ABC", "日"], dtype=object))


@row
def http_gzip() -> None:
    many = np.arange(4096, dtype=np.float32)
    inputs = _input(tritonclient.http, many, "FP32")
    for coding in ("gzip", "deflate"):
        how = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        _is(_http().infer(MODEL, inputs, **how).as_numpy("out"), many * 2)


@row
def http_every_datatype() -> None:
    for datatype in DATATYPES:
        array = np.array([1, 2, 3], dtype=tritonclient.utils.triton_to_np_dtype(datatype))
        _is(_http().infer(MODEL, _input(tritonclient.http, array, datatype)).as_numpy("out"), array * 2)


@row
def grpc_infer() -> None:
    answer = _grpc().infer(MODEL, _input(tritonclient.grpc, NUMBERS, "FP32"), request_id="7")
    _is(answer.as_numpy("out"), NUMBERS * 2)
    assert answer.get_response().id == "7"


@row
def grpc_every_datatype() -> None:
    for datatype in DATATYPES:
        array = np.array([1, 2, 3], dtype=tritonclient.utils.triton_to_np_dtype(datatype))
        _is(_grpc().infer(MODEL, _input(tritonclient.grpc, array, datatype)).as_numpy("out"), array * 2)


@row
def http_unknown_model() -> None:
    refusal = _refusal(lambda: _http().infer("nobody", _input(tritonclient.http, NUMBERS, "FP32")))
    assert refusal.status() == "404", refusal.status()
    assert "nobody" in refusal.message()


@row
def grpc_unknown_model() -> None:
    refusal = _refusal(lambda: _grpc().infer("nobody", _input(tritonclient.grpc, NUMBERS, "FP32")))
    assert refusal.status() == "StatusCode.NOT_FOUND", refusal.status()


@row
def http_config_statistics_index() -> None:
    client = _http()
    assert client.get_model_config(MODEL)["name"] == MODEL
    assert client.get_inference_statistics(MODEL)["model_stats"][0]["name"] == MODEL
    assert client.get_inference_statistics()["model_stats"]
    assert MODEL in [each["name"] for each in client.get_model_repository_index()]


@row
def grpc_config_statistics_index() -> None:
    client = _grpc()
    assert client.get_model_config(MODEL).config.name == MODEL
    assert client.get_inference_statistics(MODEL).model_stats[0].name == MODEL
    assert MODEL in [each.name for each in client.get_model_repository_index().models]


@row
def http_wrong_shape() -> None:
    inputs = _input(tritonclient.http, NUMBERS, "FP32")
    inputs[0].set_shape([3, 3])
    refusal = _refusal(lambda: _http().infer(MODEL, inputs))
    assert refusal.status() == "400", refusal.status()


show()
