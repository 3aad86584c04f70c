"""A model written in Python as one of the contract: its runner, its faults, what it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from python_api.model_requests import CHAT, events, load_model, response_json, send
from server_process import wait_until

from appliance.core import model
from appliance.core.errors import EngineDeadError, LoadError, RequestError, UnavailableError, UnsupportedOperationError
from appliance.core.model import ModelRequest, Operation
from appliance.core.openai_types import Json
from appliance.models.model_runner import run_warmup
from appliance.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from appliance.openai.types import ChatCompletion, ErrorResponse
from appliance.python_api.model_adapter import PythonModelAdapter


def chat_completion(text: str) -> Json:
    """An answer that says this."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


class Model(OpenAIGenerativeModel):
    """Says hello, and does what the test tells it to."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__("model")
        self.fault = fault
        self.loads = 0
        self.stops = 0
        self.asked: list[tuple[Any, Any, Any]] = []

    def load(self) -> Any:
        self.loads += 1

    def stop(self) -> None:
        self.stops += 1

    async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        self.asked.append((request, raw_request, context))
        if self.fault:
            raise self.fault
        return chat_completion("hello")


class Failing(Model):
    """Whose load says that it failed."""

    def load(self) -> Any:
        return False


def test_operations_are_the_methods_of_the_class() -> None:
    """Those that the base classes only offer are none; messages and responses come with chats."""

    class Both(Model, OpenAIEncoderModel):
        async def create_rerank(self, request: Any, raw_request: Any = None, context: Any = None) -> Any: ...

    chats = {Operation.CHAT_COMPLETION, Operation.MESSAGE, Operation.RESPONSE}
    assert PythonModelAdapter(Model()).operations == chats
    assert PythonModelAdapter(Both()).operations == {*chats, Operation.RERANK}


async def test_a_chat_answers_messages_and_responses() -> None:
    """Whole and streamed; an error names the client's fields."""
    model = Model()
    messages = {"max_tokens": 5, "system": "Be kind.", **CHAT}

    message = response_json(await send(model, Operation.MESSAGE, **messages))
    response = response_json(await send(model, Operation.RESPONSE, input="Hello"))
    streamed = await send(model, Operation.MESSAGE, **messages, stream=True)
    stream = (await streamed.read()).decode()

    assert (message["content"], message["model"]) == ([{"type": "text", "text": "hello"}], "model")
    assert response["output"][0]["content"][0]["text"] == "hello"
    assert model.asked[0][0].messages == [{"role": "system", "content": "Be kind."}, *CHAT["messages"]]
    assert [line for line in stream.splitlines() if line.startswith("event: ")][::5] == [
        "event: message_start",
        "event: message_stop",
    ]
    model.fault = RequestError("max_tokens is 5, and messages[1].content is long", param="max_tokens")
    with pytest.raises(RequestError, match=r"^max_output_tokens is 5, and input is long$") as caught:
        await send(model, Operation.RESPONSE, input="Hello", max_output_tokens=5)
    assert caught.value.param == "max_output_tokens"


async def test_a_model_is_loaded_once_whoever_does_it() -> None:
    """What the program has loaded already is not loaded again, also where its load forgets to say so."""
    early, late = Model(), Model()
    early.load()

    await load_model(early)
    await load_model(late)

    assert (early.loads, late.loads) == (1, 1)
    assert early.ready
    assert late.ready


async def test_a_load_may_be_asynchronous() -> None:
    """It is awaited then."""

    class Slow(Model):
        async def load(self) -> None:
            await asyncio.sleep(0)
            self.loads += 1

    model = Slow()
    await load_model(model)

    assert (model.loads, model.ready) == (1, True)


async def test_load_that_returns_false_fails() -> None:
    """False is how KServe's models say that they could not be loaded."""
    with pytest.raises(LoadError, match=r"Failing\.load\(\) returned False"):
        await load_model(Failing())


async def test_a_broken_load_leaves_the_model_unready() -> None:
    """Also where the class calls the load of its parent first."""

    class Broken(Model):
        def load(self) -> None:
            super().load()
            raise ValueError("no weights")

    model = Broken()
    with pytest.raises(LoadError, match=r"Broken\.load raised ValueError: no weights"):
        await load_model(model)

    assert not model.ready


async def test_model_dir_is_set_before_load(tmp_path: Path) -> None:
    """The storage's directory is known before the load."""

    class Reader(Model):
        def load(self) -> None:
            assert self.model_dir == tmp_path

    await PythonModelAdapter(Reader()).load({"model": tmp_path})


async def test_a_request_arrives_as_an_object_with_the_headers() -> None:
    """Fields have their types, unknown ones are kept, and headers are found in any case."""
    model = Model()
    adapter = await load_model(model)
    body = {**CHAT, "max_tokens": 5, "stop": ["a"], "mine": {"a": 1}}
    await adapter.handle(
        ModelRequest(Operation.CHAT_COMPLETION, json.dumps(body).encode(), {"x-tenant": "blue"}, "/v1/x", "a=b")
    )

    request, raw_request, context = model.asked[0]
    assert (request.messages[0]["content"], request.max_tokens, request.stop) == ("Hello", 5, ["a"])
    assert (request.stream, request.temperature, request.model) == (False, None, None)
    assert (request.mine, request.model_extra) == ({"a": 1}, {"mine": {"a": 1}})
    assert raw_request.headers["X-Tenant"] == "blue"
    assert (raw_request.path, raw_request.query) == ("/v1/x", "a=b")
    assert context["headers"]["x-tenant"] == "blue"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{}", "messages", "messages is missing"),
        (b'{"messages": []}', "messages", "messages is wrong"),
        (b'{"messages": [{}], "n": 0}', "n", "n is wrong"),
        (b'{"messages": [{}], "max_tokens": "many"}', "max_tokens", "max_tokens is wrong"),
        (b"[]", None, "The body is wrong"),
        (b"{", None, "The body is wrong"),
        (b'{"messages":' + b"[" * 10_000, None, "The body is wrong"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(body: bytes, param: str | None, message: str) -> None:
    """The model is not asked; the error names the field."""
    model = Model()
    with pytest.raises(RequestError, match=message) as refused:
        await (await load_model(model)).handle(ModelRequest(Operation.CHAT_COMPLETION, body))

    assert (refused.value.status, refused.value.param) == (400, param)
    assert model.asked == []


async def test_an_error_of_ours_is_passed_on() -> None:
    """The protocol renders it as the model chose it."""
    fault = RequestError("too long", status=413, param="messages")

    with pytest.raises(RequestError) as raised:
        await send(Model(fault))
    assert raised.value is fault


async def test_not_implemented_is_an_unsupported_operation() -> None:
    """Classes made for KServe must have methods that they do not support."""
    with pytest.raises(UnsupportedOperationError, match="does not support chat_completion"):
        await send(Model(NotImplementedError()))


@pytest.mark.parametrize(
    ("response", "status", "code"),
    [
        (ErrorResponse(message="no"), 400, None),
        (ErrorResponse(message="no", code=429), 429, 429),
        (ErrorResponse(message="no", code="404"), 404, "404"),
        (ErrorResponse(message="no", type="NotFoundError", code="model_not_found"), 404, "model_not_found"),
        (ErrorResponse(error={"message": "no", "type": "server_error"}), 500, None),
    ],
)
async def test_error_response_has_its_status_and_the_openai_format(
    response: ErrorResponse, status: int, code: object
) -> None:
    """The status is the code where it is one, else what the type stands for."""

    class Refusing(Model):
        async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            return response

    reply = await send(Refusing())

    assert reply.status == status
    assert response_json(reply) == {
        "error": {"message": "no", "type": response.error.type, "param": None, "code": code},
    }


async def test_an_error_in_a_stream_is_an_event_or_the_status() -> None:
    """An event where the client streams, and a reply's status where it wants the whole."""

    class Refusing(Model):
        async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            yield ErrorResponse(message="no more", code=503)

    (event,) = await events(await send(Refusing(), stream=True))
    reply = await send(Refusing())

    assert event["error"]["message"] == "no more"
    assert (reply.status, response_json(reply)["error"]["code"]) == (503, 503)


async def test_closing_a_reply_closes_the_stream_of_the_model() -> None:
    """A client that leaves ends the work."""
    closed = asyncio.Event()

    class Endless(Model):
        async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            try:
                while True:
                    yield {"choices": []}
                    await asyncio.sleep(0)
            finally:
                closed.set()

    stream = cast("AsyncGenerator[bytes]", (await send(Endless(), stream=True)).body)
    await anext(stream)
    await stream.aclose()

    assert closed.is_set()


async def test_cancelling_a_call_cancels_the_method() -> None:
    """Also in the middle of gathering what it streams."""
    began, ended = asyncio.Event(), asyncio.Event()

    class Waiting(Model):
        async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            try:
                began.set()
                yield {"choices": []}
                await asyncio.sleep(3600)
            finally:
                ended.set()

    call = asyncio.create_task(send(Waiting()))
    await began.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    assert call.cancelled()
    assert ended.is_set()


async def test_a_plain_method_runs_in_a_thread() -> None:
    """The event loop goes on meanwhile."""
    names: list[str] = []

    class Plain(Model):
        def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            names.append(threading.current_thread().name)
            return ChatCompletion(**chat_completion("hello"))

    answer = response_json(await send(Plain()))

    assert answer["choices"][0]["message"]["content"] == "hello"
    assert names != [threading.current_thread().name]


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        ({}, ["messages", "max_tokens", "temperature"]),
        ({"messages": [{"role": "user", "content": "1+1"}]}, ["messages", "max_tokens", "temperature"]),
        ({"max_tokens": 4}, ["messages", "max_tokens", "temperature"]),
    ],
)
async def test_a_proof_is_the_smallest_request_with_what_the_class_says(
    proof: Mapping[str, Any], expected: list[str]
) -> None:
    """A class may ask for more, or for something else."""

    class Proved(Model):
        pass

    Proved.proof = proof
    model = Proved()
    call = (await load_model(model)).warmup_request
    assert call is not None
    body = json.loads(call.body)

    assert call.operation is Operation.CHAT_COMPLETION
    assert body["model"] == "model"
    assert set(expected) < set(body)
    assert proof.items() <= body.items()


async def test_a_proof_goes_to_the_operation_its_fields_belong_to() -> None:
    """A prompt asks for a completion; None asks nothing."""

    class Both(Model):
        proof = {"prompt": "1+1"}  # noqa: RUF012 - as a user writes it

        async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any: ...

    both, silent = Both(), Model()
    silent.proof = None
    call = PythonModelAdapter(both).warmup_request

    assert call is not None
    assert call.operation is Operation.COMPLETION
    assert PythonModelAdapter(silent).warmup_request is None


async def test_a_proof_that_is_refused_fails_the_load() -> None:
    """An answer with an error is none."""

    class Refusing(Model):
        async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            return ErrorResponse(message="not today")

    adapter = await load_model(Refusing())
    assert adapter.warmup_request is not None

    with pytest.raises(LoadError, match="not today"):
        await run_warmup(adapter, adapter.warmup_request)


class WithHealth(Model):
    """Whose health is what the test says."""

    well: Any = True

    def healthy(self) -> Any:
        if isinstance(self.well, Exception):
            raise self.well
        return self.well


@pytest.mark.parametrize(
    ("well", "error", "message"),
    [
        (False, UnavailableError, r"healthy\(\) returned False"),
        (ValueError("oops"), UnavailableError, r"^its healthy\(\) raised an error; the log says why$"),
        (UnavailableError("busy"), UnavailableError, r"^its healthy\(\) says that it cannot answer now, because busy$"),
        (EngineDeadError("gone"), EngineDeadError, "gone"),
    ],
)
async def test_healthy_is_called_repeatedly(well: object, error: type[Exception], message: str) -> None:
    """It may come back, unless it says that it is dead."""
    model = WithHealth()
    adapter = await load_model(model)
    await adapter.check()
    model.well = well

    with pytest.raises(error, match=message):
        await _check_often(adapter)
    await adapter.close()


async def _check_often(adapter: model.Model) -> None:
    for _ in range(500):
        await adapter.check()
        await asyncio.sleep(0.01)


async def test_model_unhealthy_from_the_start_is_never_ready() -> None:
    """The first look is part of the load."""
    model = WithHealth()
    model.well = False
    adapter = await load_model(model)

    with pytest.raises(UnavailableError):
        await adapter.check()
    await adapter.close()


async def test_model_that_resets_ready_is_unavailable() -> None:
    """The attribute is looked at, whoever sets it."""
    model = Model()
    adapter = await load_model(model)
    model.ready = False

    with pytest.raises(UnavailableError):
        await adapter.check()


async def test_a_model_is_stopped_once() -> None:
    """Closing again does nothing."""
    model = Model()
    adapter = await load_model(model)
    await adapter.close()
    await adapter.close()

    assert model.stops == 1


async def test_plain_generator_is_closed_when_the_client_disconnects() -> None:
    """In a thread, after the step that is under way."""
    closed = threading.Event()

    class Endless(Model):
        def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            try:
                while True:
                    yield {"choices": []}
            finally:
                closed.set()

    stream = cast("AsyncGenerator[bytes]", (await send(Endless(), stream=True)).body)
    await anext(stream)
    await stream.aclose()

    await asyncio.to_thread(wait_until, closed.is_set, 10)
