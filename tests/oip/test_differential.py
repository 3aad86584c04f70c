"""The same requests to the appliance, to KServe's ModelServer and to MLServer, all with the same echo model.

Where they differ, the table says why; what it lists and does not differ any more, it must not list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from reference_servers import Reference, environment, kserve_environment, serving

from appliance.core.errors import RequestError
from appliance.tensors.codec import LENGTH_HEADER, read_response

PROGRAMS = Path(__file__).parent / "programs"
DOUBLES = Path(__file__).parent.parent / "inference_doubles.py"


@dataclass(frozen=True)
class Case:
    """One request: bytes as they are, anything else as JSON."""

    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _infer(*tensors: dict[str, Any], **more: Any) -> Case:
    return Case("/v2/models/echo/infer", {"inputs": [*tensors], **more})


def _tensor(datatype: str, shape: list[int], data: Any, **more: Any) -> dict[str, Any]:
    return {"name": "in", "datatype": datatype, "shape": shape, "data": data, **more}


def _binary(raw: bytes, **more: Any) -> Case:
    tensor = {"name": "in", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}, **more}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return Case("/v2/models/echo/infer", head + raw, headers)


CASES: Mapping[str, Case] = {
    "live": Case("/v2/health/live"),
    "ready": Case("/v2/health/ready"),
    "model ready": Case("/v2/models/echo/ready"),
    "unknown model ready": Case("/v2/models/nobody/ready"),
    "numbers": _infer(_tensor("FP32", [2], [1.5, -2.0]), id="7"),
    "nested numbers": _infer(_tensor("INT64", [2, 2], [[1, 2], [3, 4]]), id="7"),
    "texts": _infer(_tensor("BYTES", [2], ["a", "日"]), id="7"),
    "half floats as numbers": _infer(_tensor("FP16", [1], [1.5]), id="7"),
    "wanted output": _infer(_tensor("FP32", [1], [1.0]), id="7", outputs=[{"name": "out"}]),
    "unknown output": _infer(_tensor("FP32", [1], [1.0]), id="7", outputs=[{"name": "nothing"}]),
    "too few values": _infer(_tensor("FP32", [3], [1.0, 2.0])),
    "negative dimension": _infer(_tensor("FP32", [-1], [1.0])),
    "unknown datatype": _infer(_tensor("FP33", [1], [1.0])),
    "value out of range": _infer(_tensor("INT8", [1], [300])),
    "no inputs": Case("/v2/models/echo/infer", {}),
    "no JSON": Case("/v2/models/echo/infer", b"{"),
    "unknown model": Case("/v2/models/nobody/infer", {"inputs": [_tensor("FP32", [1], [1.0])]}),
    "binary": _binary(b"\x01\x00\x00\x00\x02\x00\x00\x00"),
    "short binary": _binary(b"\x01\x00\x00\x00"),
    "wrong size of binary": _binary(b"\x01\x00\x00\x00", parameters={"binary_data_size": 4}),
    "index": Case("/v2/repository/index", {}),
    "statistics": Case("/v2/models/echo/stats"),
    "predictions": Case("/v1/models/echo:predict", {"instances": [[1, 2]]}),
    "predictions of no list": Case("/v1/models/echo:predict", {"instances": 3}),
    "model of V1": Case("/v1/models/echo"),
}

_ARGUMENT = "a request that is wrong is the client's fault, and 400 in the protocol's text; a 500 blames the server"
_STATUS = "the protocol's text has 400 for a request that is wrong, where this is 422"
_OUTPUT = "an output that is wanted and not there is an error, not another output"
_SHAPE = "its codec of NumPy makes a column of a row; ours keeps the shape the model gave"
_NEGATIVE = "a dimension is unsigned in the protocol's text; -1 stands in metadata alone"
_EXTENSION = "Triton's extension, which clients ask for and it does not have"

DIFFERENT: Mapping[tuple[str, str], str] = {
    ("kserve", "half floats as numbers"): "a number is a number; nothing in the protocol's text forbids it",
    ("kserve", "unknown output"): _OUTPUT,
    ("kserve", "too few values"): _ARGUMENT,
    ("kserve", "negative dimension"): _NEGATIVE,
    ("kserve", "value out of range"): _ARGUMENT,
    ("kserve", "no inputs"): _STATUS,
    ("kserve", "no JSON"): _STATUS,
    ("kserve", "short binary"): _ARGUMENT,
    ("kserve", "wrong size of binary"): _ARGUMENT,
    ("kserve", "index"): _EXTENSION,
    ("kserve", "statistics"): _EXTENSION,
    ("mlserver", "numbers"): _SHAPE,
    ("mlserver", "half floats as numbers"): _SHAPE,
    ("mlserver", "wanted output"): _SHAPE,
    ("mlserver", "unknown output"): _OUTPUT,
    ("mlserver", "too few values"): _ARGUMENT,
    ("mlserver", "negative dimension"): _NEGATIVE,
    ("mlserver", "unknown datatype"): _STATUS,
    ("mlserver", "value out of range"): _ARGUMENT,
    ("mlserver", "no inputs"): _STATUS,
    ("mlserver", "no JSON"): _STATUS,
    ("mlserver", "binary"): "Triton's extension, which its clients use unless they are told otherwise",
    ("mlserver", "short binary"): _STATUS,
    ("mlserver", "wrong size of binary"): _STATUS,
    ("mlserver", "statistics"): _EXTENSION,
    ("mlserver", "predictions"): "it does not speak the first version",
    ("mlserver", "predictions of no list"): "it does not speak the first version",
    ("mlserver", "model of V1"): "it does not speak the first version",
}
"""Each difference, and why ours is as it is."""


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    """The appliance."""
    words: list[str | Path] = [sys.executable, DOUBLES, "port={http}", "grpc_port={grpc}", "host=127.0.0.1"]
    with serving(tmp_path_factory.mktemp("ours") / "log", words, "/v2/health/ready") as server:
        yield server


@pytest.fixture(scope="module")
def kserve(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    """KServe's ModelServer."""
    python = kserve_environment(pytestconfig)
    words: list[str | Path] = [python, PROGRAMS / "kserve_echo.py", "{http}", "{grpc}"]
    with serving(tmp_path_factory.mktemp("kserve") / "log", words, "/v2/models/echo/ready") as server:
        yield server


@pytest.fixture(scope="module")
def mlserver(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    """MLServer."""
    python = environment(pytestconfig, "oip-mlserver", "mlserver==1.7.1")
    names = {"HTTP_PORT": "{http}", "GRPC_PORT": "{grpc}", "METRICS_PORT": "{more}"}
    settings = {f"MLSERVER_{name}": port for name, port in names.items()}
    more = {**settings, "MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_HOST": "127.0.0.1"}
    words: list[str | Path] = [python.with_name("mlserver"), "start", PROGRAMS / "mlserver_echo"]
    with serving(tmp_path_factory.mktemp("mlserver") / "log", words, "/v2/models/echo/ready", more) as server:
        yield server


def _answer(server: Reference, case: Case) -> tuple[int, Any]:
    """The status, and of a good answer what the protocol's text speaks of."""
    url, body = server.url + case.path, case.body
    if body is None:
        answer = httpx.get(url)
    else:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = httpx.post(url, content=content, headers={"Content-Type": "application/json", **case.headers})
    if answer.status_code != 200:
        return answer.status_code, None
    if not case.path.endswith("/infer"):
        return 200, answer.json() if answer.content else None
    try:
        response = read_response(answer.content, answer.headers.get(LENGTH_HEADER))
    except RequestError as error:
        return 200, f"unreadable: {error}"
    # An id is given back where one was given, and made up, or not, where none was.
    has_id = isinstance(case.body, dict) and "id" in case.body
    tensors = [(each.name, each.datatype, each.shape, each.raw) for each in response.outputs]
    return 200, (response.id if has_id else None, tensors)


def _has(ours: Any, theirs: Any) -> bool:
    """Whether ours says all that theirs does, and more at most."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and all(key in ours and _has(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return isinstance(ours, list) and all(any(_has(mine, each) for mine in ours) for each in theirs)
    return theirs is None or bool(ours == theirs)


def _differences(ours: Reference, theirs: Reference, name: str) -> dict[tuple[str, str], Any]:
    found = {}
    for case, asked in CASES.items():
        left, right = _answer(ours, asked), _answer(theirs, asked)
        if left[0] != right[0] or not _has(left[1], right[1]):
            found[name, case] = (left, right)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kserve", "mlserver"])
def test_responses_equal_the_reference_except_listed_differences(
    ours: Reference, name: str, request: pytest.FixtureRequest
) -> None:
    """No difference that has no reason, and no reason for what does not differ."""
    found = _differences(ours, request.getfixturevalue(name), name)
    listed = {key for key in DIFFERENT if key[0] == name}

    assert {key: said for key, said in found.items() if key not in listed} == {}
    assert listed - found.keys() == set()
