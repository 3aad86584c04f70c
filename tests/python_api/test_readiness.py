"""Readiness of models written in Python: what proves it, and what keeps it from clients without a key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from python_api.model_requests import load_model
from server_process import ServerProcess, wait_until

import appliance
from appliance.core.errors import ApplianceError, LoadError
from appliance.core.model import ModelRequest, Operation
from appliance.errors import RequestError
from appliance.models.model_runner import run_warmup
from appliance.python_api.responses import InvalidResultError

KEY = "key-of-an-operator-0123456789abcdef"

MODELS = """
from appliance import Model
from appliance.errors import UnavailableError

class Loading(Model):
    def load(self):
        raise ValueError("password=hunter2")

    def predict(self, payload, headers=None): ...

    def get_input_types(self):
        return self.types_set_by_load

class Unwell(Model):
    def healthy(self):
        raise UnavailableError("password=hunter2")

    def predict(self, payload, headers=None): ...

class Proving(Model):
    proof = {"instances": [1]}

    def predict(self, payload, headers=None):
        raise KeyError("password=hunter2")
"""


class Doubling(appliance.Model):
    """Doubles what it gets, and remembers it."""

    def __init__(self) -> None:
        super().__init__("doubling")
        self.seen: list[Any] = []

    def predict(self, payload: Any, headers: Any = None) -> Any:
        self.seen.append(payload)
        if isinstance(payload, dict):
            return {"predictions": [2 * each for each in payload["instances"]]}
        (tensor,) = payload.inputs
        output = appliance.InferOutput.from_numpy("y", 2 * tensor.as_numpy())
        return appliance.InferResponse("1", self.name, [output])


class Declaring(Doubling):
    """Says what its inputs are."""

    def get_input_types(self) -> Any:
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


async def prove(model: appliance.Model) -> ModelRequest | None:
    """Load the model and send its warm-up request, as the server does; return the request."""
    adapter = await load_model(model)
    if (request := adapter.warmup_request) is not None:
        await run_warmup(adapter, request)
    return request


async def test_declared_inputs_are_sent_as_zeros() -> None:
    """A model that cannot compute them is not ready."""

    class Failing(Declaring):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            raise ValueError("no weights")

    model = Declaring()
    request = await prove(model)

    assert request is not None
    assert request.operation is Operation.INFERENCE
    assert model.seen[0].inputs[0].shape == [1, 4]
    assert model.seen[0].inputs[0].data == [0.0] * 4
    with pytest.raises(ApplianceError, match=r"Failing\.predict raised ValueError: no weights"):
        await prove(Failing())


@pytest.mark.parametrize(
    ("proof", "operation"),
    [
        ({"instances": [1, 2]}, Operation.PREDICTION),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [3]}]}, Operation.INFERENCE),
        ({"inputs": [[1, 2]], "instances": [1]}, Operation.PREDICTION),
    ],
)
async def test_a_proof_is_the_whole_request(proof: Any, operation: Operation) -> None:
    """Of the version of the protocol that it is written in."""
    model = Doubling()
    model.proof = proof
    request = await prove(model)

    assert request is not None
    assert request.operation is operation
    assert len(model.seen) == 1


async def test_a_proof_may_be_answered_by_a_stream() -> None:
    """Its first piece is enough; a stream without one proves nothing."""

    class Streaming(Doubling):
        pieces = 1
        proof = {"instances": [1]}  # noqa: RUF012 - as a user writes it

        def predict(self, payload: Any, headers: Any = None) -> Iterator[Any]:
            yield from [{"piece": 1}] * self.pieces

    await prove(Streaming())
    Streaming.pieces = 0
    with pytest.raises(LoadError, match="empty"):
        await prove(Streaming())


async def test_without_declared_inputs_and_with_proof_none_nothing_is_sent() -> None:
    """Then being healthy is enough."""
    silent = Declaring()
    silent.proof = None

    assert await prove(Doubling()) is None
    assert await prove(silent) is None


@pytest.mark.parametrize("types", [[{"name": "x"}], [{"name": "x", "datatype": "fp32", "shape": [1]}], ["x"]])
async def test_wrong_input_types_are_named(types: Any) -> None:
    """With what was returned, and what is expected."""

    class Wrong(Doubling):
        def get_input_types(self) -> Any:
            return types

    with pytest.raises(LoadError, match=r'Wrong\.get_input_types\(\) returned .*"datatype": "FP32"'):
        await prove(Wrong())


async def test_a_class_that_overrides_nothing_is_not_served() -> None:
    """It would be ready and answer nothing."""
    with pytest.raises(LoadError, match=r"Model answers nothing; override one of the methods .*predict"):
        await load_model(appliance.Model("empty"))


async def test_an_error_has_any_status() -> None:
    """The public class goes through as it is raised."""

    class Teapot(Doubling):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            raise RequestError("short and stout", status=418)

    adapter = await load_model(Teapot())
    with pytest.raises(RequestError, match="short and stout") as caught:
        await adapter.handle(ModelRequest(Operation.PREDICTION, b"{}"))

    assert caught.value.status == 418


@pytest.mark.parametrize(
    ("returned", "operation", "message"),
    [
        ("text", Operation.PREDICTION, r'returned a str; must be a mapping such as \{"predictions": \[\.\.\.\]\}'),
        (None, Operation.PREDICTION, "returned nothing; must be a mapping"),
        (3, Operation.INFERENCE, "returned a int; must be an InferResponse"),
        ({"predictions": [1]}, Operation.INFERENCE, "returned a dict; must be an InferResponse"),
    ],
)
async def test_a_wrong_result_is_named_with_what_is_expected(returned: Any, operation: Operation, message: str) -> None:
    """Its type and the right one are in the log and, of the warm-up request, in the probes of operators."""

    class Returning(Doubling):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            return returned

    model = Returning()
    model.proof = {"instances": [1]} if operation is Operation.PREDICTION else None
    adapter = await load_model(model)
    body: dict[str, Any] = {"instances": []} if operation is Operation.PREDICTION else {"inputs": []}
    with pytest.raises(InvalidResultError, match=message):
        await adapter.handle(ModelRequest(operation, json.dumps(body).encode()))


def test_nobody_without_a_key_reads_what_code_raised(
    tmp_path: Path, serve: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No readiness body has it, of any protocol; operators and the log have it. Other routes are 503 meanwhile."""
    (tmp_path / "leaky_models.py").write_text(MODELS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ("Loading", "Unwell", "Proving", "Absent")
    models = [{"name": each, "class": "predictor", "engine": {"python": f"leaky_models:{each}"}} for each in names]
    keys = [{"name": "operator", "value": KEY, "admin": True}]
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"models": models, "server": {"api_keys": keys}}))
    server = serve(file=file)
    paths = ["/livez", "/readyz", "/startupz", "/health", "/ping", "/v2/health/live", "/v2/health/ready"]
    paths += [f"/v2/models/{name}/ready" for name in names] + [f"/v1/models/{name}" for name in names]

    def states() -> list[str]:
        try:
            answer = httpx.get(f"{server.url}/readyz", headers={"Authorization": f"Bearer {KEY}"})
        except httpx.TransportError:
            return []
        return [each["state"] for each in answer.json()["models"]]

    wait_until(lambda: states() == ["failed", "unavailable", "failed", "failed"], 60)
    login = {"Authorization": f"Bearer {KEY}"}
    known = httpx.get(f"{server.url}/readyz", headers=login)
    predict = partial(httpx.post, headers=login, json={"instances": [1]})
    predicted = [predict(f"{server.url}/v1/models/{name}:predict") for name in names]
    shown = [httpx.get(server.url + path, headers=login) for path in ("/v1/models", "/v2/models/Loading")]
    unknown = [httpx.get(server.url + path) for path in paths]

    assert known.text.count("hunter2") == 3
    assert [(each.status_code, list(each.json())) for each in predicted] == [(503, ["error"])] * 4
    assert [each.status_code for each in shown] == [200, 200]
    assert not [each.url for each in unknown if "hunter2" in each.text]
    assert {each.status_code for each in unknown} <= {200, 401, 503}
    assert server.stop() in {0, 4}
