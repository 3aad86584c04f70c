"""Whatever code of a user raises: the request or the model fails, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from python_api.model_requests import load_model, send
from server_process import ServerProcess, wait_until
from structlog.testing import capture_logs

from appliance import Model
from appliance.core.errors import LoadError, UnavailableError
from appliance.core.model import ModelRequest, Operation
from appliance.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.python_api.responses import InvalidResultError
from appliance.python_api.user_code import UserCodeError


class UnprintableError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise SystemExit


RAISED: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("oops"),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": asyncio.CancelledError,
    "closed": GeneratorExit,
    "stop": lambda: StopIteration(1),
    "async stop": StopAsyncIteration,
    "group": lambda: BaseExceptionGroup("several", [ValueError("oops"), SystemExit(3)]),
    "unspeakable": UnprintableError,
    "memory": MemoryError,
    "recursion": RecursionError,
}


class Raising(OpenAIGenerativeModel):
    """Raises what it is given, wherever it is told to."""

    def __init__(self, fault: Callable[[], BaseException], *places: str) -> None:
        super().__init__("model")
        self.fault, self.places = fault, places

    def _perhaps(self, place: str) -> None:
        if place in self.places:
            raise self.fault()

    def load(self) -> None:
        self._perhaps("load")

    def healthy(self) -> bool:
        self._perhaps("healthy")
        return True

    def stop(self) -> None:
        self._perhaps("stop")

    def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        self._perhaps("plain")

    async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        await asyncio.sleep(0)
        self._perhaps("async")

        async def chunks() -> AsyncGenerator[Any]:
            yield {"choices": [{"delta": {"content": "a"}}]}
            self._perhaps("stream")

        return chunks()


raising = pytest.mark.parametrize("fault", RAISED.values(), ids=RAISED)


@raising
async def test_what_a_method_raises_fails_its_request(fault: Callable[[], BaseException]) -> None:
    """Plain or asynchronous; the log has the exception's name and the user's frames."""
    for place, operation in (("plain", Operation.COMPLETION), ("async", Operation.CHAT_COMPLETION)):
        with capture_logs() as logs, pytest.raises(UserCodeError, match=r"Raising\.create_\w+ raised "):
            await send(Raising(fault, place), operation, prompt="Hello")

        (event,) = (each for each in logs if each["event"] == "model.code_failed")
        assert any(frame.endswith(" _perhaps") for frame in event["frames"])
        assert not any("appliance/python_api/" in frame for frame in event["frames"])


@raising
async def test_what_a_stream_raises_ends_the_stream(fault: Callable[[], BaseException]) -> None:
    """After the first chunk too."""
    reply = await send(Raising(fault, "stream"), stream=True)
    stream = cast("AsyncGenerator[bytes]", reply.body)

    assert b'"content":"a"' in await anext(stream)
    with pytest.raises(UserCodeError, match="the stream of chunks raised "):
        await anext(stream)


@raising
async def test_what_load_raises_is_a_failed_load(fault: Callable[[], BaseException]) -> None:
    """This model fails, and the process goes on."""
    with pytest.raises(LoadError, match=r"Raising\.load raised .*; the log says where in your code"):
        await load_model(Raising(fault, "load"))


@raising
async def test_errors_of_healthy_and_stop_do_not_escape(fault: Callable[[], BaseException]) -> None:
    """An ill model is unavailable, and one that cannot stop is left all the same."""
    model = await load_model(Raising(fault, "healthy", "stop"))

    with pytest.raises(UnavailableError, match=r"its healthy\(\) raised "):
        await model.check()
    with capture_logs() as logs:
        await model.close()
    assert "Raising.stop" in {each.get("code") for each in logs}


async def test_a_healthy_that_goes_on_raising_is_logged_once() -> None:
    """It is asked all the time; another fault is logged again, and so is the first one after it was well."""
    counter = count()
    faults: list[Callable[[], BaseException]] = [lambda: ValueError(f"number {next(counter)}"), lambda: SystemExit(3)]
    model = Raising(faults[0], "healthy")
    running = await load_model(model)
    logged: list[str] = []
    for number, place in ((0, "healthy"), (1, "healthy"), (0, "nowhere"), (0, "healthy")):
        model.fault, model.places = faults[number], (place,)
        with capture_logs() as logs:
            for _ in range(20):
                with suppress(UnavailableError):
                    await running.check()
                await asyncio.sleep(0.05)
        logged += [each["reason"].split(":")[0] for each in logs if each["event"] == "model.code_failed"]

    assert logged == ["ValueError", "SystemExit", "ValueError"]
    await running.close()


async def test_cancelled_request_is_not_logged_as_an_error() -> None:
    """The client left: nothing is logged, and the cancellation goes on."""

    class Slow(OpenAIGenerativeModel):
        async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            await asyncio.sleep(600)

    task = asyncio.create_task(send(Slow("model"), Operation.COMPLETION, prompt="Hello"))
    await asyncio.sleep(0.05)
    task.cancel()

    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await task
    assert logs == []


async def test_log_has_causes_and_groups() -> None:
    """Each with its type and its text, which is cut where it is long."""

    def fault() -> Exception:
        group = ExceptionGroup("several", [ValueError("a"), UnprintableError()])
        group.__cause__ = KeyError("x" * 100_000)
        return group

    with pytest.raises(UserCodeError) as raised:
        await send(Raising(fault, "async"))

    said = str(raised.value)
    assert "several (2 sub-exceptions) (ValueError: a; UnprintableError: its __str__ raised SystemExit)" in said
    assert ", caused by KeyError: 'xxx" in said
    assert len(said) < 10_000


class Odd:
    """Raises when it is looked into."""

    def tolist(self) -> list[float]:
        raise KeyError("tolist")


@pytest.mark.parametrize("returned", [Odd(), object(), {"data": Odd()}, {"data": [{"embedding": ["a"]}]}, {"data": 5}])
async def test_error_of_a_wrong_result_names_its_type(returned: object) -> None:
    """Whatever breaks while it is made into JSON."""

    class Encoder(OpenAIEncoderModel):
        async def create_embedding(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            return returned

    with pytest.raises(InvalidResultError, match="the model returned "):
        await send(Encoder("model"), Operation.EMBEDDING, input="Hello", encoding_format="base64")


async def test_vectors_are_no_stream() -> None:
    """A generator where one whole answer is wanted is told."""

    class Encoder(OpenAIEncoderModel):
        async def create_embedding(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            return (each for each in range(0))

    with pytest.raises(InvalidResultError, match="answered embedding with a stream"):
        await send(Encoder("model"), Operation.EMBEDDING, input="Hello")


class Counting(Model):
    """Predicts in pieces."""

    def predict(self, payload: Any, headers: Any = None) -> Iterator[Any]:
        for number in payload["instances"]:
            yield {"prediction": number}
            yield f"text {number}\n"
            yield b"\x00\xff"


async def test_a_prediction_in_pieces_is_streamed() -> None:
    """Mappings are lines of JSON, texts and bytes pass as they are; tensors cannot be streamed."""
    model = await load_model(Counting("model"))
    reply = await model.handle(ModelRequest(Operation.PREDICTION, b'{"instances": [1, 2]}'))

    assert not isinstance(reply.body, bytes)
    pieces = [piece async for piece in reply.body]
    assert b"".join(pieces) == b'{"prediction":1}\ntext 1\n\x00\xff{"prediction":2}\ntext 2\n\x00\xff'
    tensors = {"inputs": [{"name": "a", "shape": [1], "datatype": "INT32", "data": [1]}]}
    with pytest.raises(InvalidResultError, match="predict is a generator"):
        await model.handle(ModelRequest(Operation.INFERENCE, json.dumps(tensors).encode()))


async def test_proof_must_be_a_mapping() -> None:
    """With its type, and what is expected."""

    class Wrong(Raising):
        proof = cast("Any", "1+1")

    with pytest.raises(LoadError, match=r"Wrong\.proof is a str; must be a mapping, or None"):
        _ = PythonModelAdapter(Wrong(ValueError)).warmup_request


USER_MODELS = """
import asyncio, sys
from appliance import Model

class Exiting(Model):
    def load(self):
        sys.exit(7)
    def predict(self, payload, headers=None):
        return {}

class Doing(Model):
    async def predict(self, payload, headers=None):
        await asyncio.sleep(0)
        match payload["instances"][0]:
            case "exit": sys.exit(3)
            case "interrupt": raise KeyboardInterrupt
            case "cancel": raise asyncio.CancelledError
            case "stream": return self.pieces(payload["instances"][1:])
        return {"predictions": payload["instances"]}

    async def pieces(self, numbers):
        for number in numbers:
            yield {"prediction": number}
        if len(numbers) > 2:
            raise ValueError("a secret of the model")
"""


def test_a_server_outlives_what_its_models_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Requests get a 500 in their protocol's shape with the request's id, one model fails to load, and the other serves.
    """
    (tmp_path / "user_code_models.py").write_text(USER_MODELS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    models = [
        {"name": name, "class": "generative", "on_failure": "stay", "engine": {"python": f"user_code_models:{class_}"}}
        for name, class_ in (("doing", "Doing"), ("exiting", "Exiting"))
    ]
    (tmp_path / "config.yaml").write_text(json.dumps({"models": models}))
    served = ServerProcess(tmp_path / "config.yaml", tmp_path / "log")
    try:
        wait_until(lambda: {"ready", "failed"} == _states(served), 60, served.log_tail)

        for instance in ("exit", "interrupt", "cancel"):
            status, body = served.ask("/v1/models/doing:predict", {"instances": [instance]}, {"x-request-id": "my-id"})
            assert (status, set(body)) == (500, {"error"})
            assert "request id my-id" in body["error"]
        assert served.post("/v1/models/doing:predict", {"instances": [1]}) == (200, {"predictions": [1]})
        lines = served.stream("/v1/models/doing:predict", {"instances": ["stream", 1, 2]}).splitlines()
        assert [json.loads(line) for line in lines] == [{"prediction": 1}, {"prediction": 2}]
        late = served.stream("/v1/models/doing:predict", {"instances": ["stream", 1, 2, 3]}).splitlines()
        assert set(json.loads(late[-1])) == {"error"}
        assert b"secret" not in late[-1]
        failed = [each for each in served.events() if each["event"] == "model.code_failed"]
        assert "Exiting.load" in {each["code"] for each in failed}
        assert "my-id" in {each.get("request_id") for each in failed}
        assert served.stop() == 0
    finally:
        served.process.kill()


def _states(served: ServerProcess) -> set[str]:
    _, body = served.get("/readyz")
    return {each["state"] for each in body["models"]} if body else set()


async def test_a_thread_that_closes_a_stream_logs_what_that_raises() -> None:
    """Not as a traceback on standard error, where it would break a log of JSON."""
    is_closed = threading.Event()

    class Stubborn(OpenAIGenerativeModel):
        def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            try:
                while True:
                    yield {"choices": [{"text": "a"}]}
            finally:
                is_closed.set()
                raise ValueError("at the end")

    reply = await send(Stubborn("model"), Operation.COMPLETION, prompt="Hello", stream=True)
    stream = cast("AsyncGenerator[bytes]", reply.body)
    await anext(stream)
    with capture_logs() as logs:
        await stream.aclose()
        await asyncio.to_thread(is_closed.wait, 30)
        wait_until(lambda: bool(logs), 30)

    assert logs[0]["reason"].startswith("ValueError: at the end")
