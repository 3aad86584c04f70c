"""Programs that users write, run as they run them and asked with OpenAI's client."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import grpc
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from python_api.program import PROGRAMS, Program
from server_process import wait_until

from appliance.tensors.grpc import inference_pb2, inference_pb2_grpc

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("name", ["chat.py", "embeddings.py"])
def test_minimal_model_is_served(name: str) -> None:
    """Each program is about 25 lines of code."""
    lines = (PROGRAMS / name).read_text().splitlines()
    code = [line for line in lines if line.strip() and '"""' not in line]

    assert len(code) <= 27


def test_a_chat_model_in_python_answers_openais_client(chat: Program) -> None:
    """An answer whose choices are plain mappings arrives whole, with everything its author left out."""
    answer = chat.client().chat.completions.create(model="parrot", messages=HELLO)

    assert answer.choices[0].message.content == "You said: Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", "parrot")
    assert answer.id.startswith("chatcmpl-")
    assert answer.created > 0


def test_an_answer_is_streamed_to_a_client_that_wants_a_stream(chat: Program) -> None:
    """A model that knows no streams serves clients that know nothing else."""
    chunks = list(chat.client().chat.completions.create(model="parrot", messages=HELLO, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("form", ["float", "base64", openai.omit])
def test_an_encoder_in_python_answers_with_numpys_vectors(
    embeddings: Program, form: Literal["float", "base64"] | openai.Omit
) -> None:
    """Vectors arrive as they were made, as numbers and as base64, which the client asks for by itself."""
    client = embeddings.client()
    answer = client.embeddings.create(model="letters", input=["Banana", "b"], encoding_format=form)

    vectors = [_numbers(each.embedding) for each in answer.data]
    assert vectors[0][:2] == (3.0, 1.0)
    assert vectors[1][:2] == (0.0, 1.0)
    assert [each.index for each in answer.data] == [0, 1]


def _numbers(vector: object) -> tuple[float, ...]:
    """The client decodes what it asked for by itself, and leaves what it was told to ask for."""
    if isinstance(vector, str):
        vector = memoryview(base64.b64decode(vector)).cast("f")
    return tuple(cast("list[float]", vector))


def test_unsupported_operation_is_a_clear_error(chat: Program) -> None:
    """Its operations are the methods that its class has."""
    with pytest.raises(openai.BadRequestError) as refused:
        chat.client().completions.create(model="parrot", prompt="Hello")

    assert refused.value.code == "unsupported_operation"
    assert "it supports: chat_completion" in refused.value.message


def test_a_request_that_is_wrong_is_refused_by_its_field(chat: Program) -> None:
    """A wrong type is the client's fault: 400 and the name of the field."""
    with pytest.raises(openai.BadRequestError) as refused:
        chat.client().chat.completions.create(model="parrot", messages=HELLO, temperature="hot")  # type: ignore[call-overload]

    assert refused.value.param == "temperature"


def test_a_python_model_has_probes_metrics_and_a_card(chat: Program) -> None:
    """It is served like any other."""
    ready, standing = chat.get("/readyz")
    _, card = chat.get("/v1/models/parrot")
    with socket.create_connection(("127.0.0.1", chat.port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        metrics = b"".join(iter(lambda: connection.recv(65536), b""))

    assert ready == 200
    assert standing["models"][0]["reason"] == "the warm-up request succeeded"
    assert (card["id"], card["ready"]) == ("parrot", True)
    assert b'appliance_model_state{model="parrot",state="ready"} 1.0' in metrics


def test_a_python_model_answers_over_grpc_too(chat: Program) -> None:
    """Where the program names a port for it, in the Open Inference Protocol."""
    with grpc.insecure_channel(f"127.0.0.1:{chat.grpc_port}") as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        ready = stub.ModelReady(inference_pb2.ModelReadyRequest(name="parrot"), timeout=10)

    assert ready.ready


def test_program_serves_until_the_last_response(start: Callable[..., Program], tmp_path: Path) -> None:
    """The port answers while the model loads; the end of a client closes its stream; SIGTERM stops the model, and the
    program goes on after `start`.
    """
    diary = tmp_path / "diary"
    program = start("life.py", str(diary))
    wait_until(lambda: diary.exists() and program.state() == "loading", 30, program.log_tail)
    diary.with_suffix(".go").touch()
    program.wait_until_ready(30)
    client = program.client()

    stream = client.chat.completions.create(model="counter", messages=HELLO, stream=True, max_tokens=100_000)
    first = next(iter(stream))
    stream.close()
    wait_until(lambda: diary.read_text().count("stream closed") == 2, 10, diary.read_text)
    code = program.stop()

    assert first.choices[0].delta.content == "0 "
    assert code == 0
    # The first stream is that of the proof.
    lines = "load began, loaded, stream closed, stream closed, stopped, returned, left"
    assert diary.read_text().splitlines() == lines.split(", ")


def test_hanging_load_does_not_delay_the_exit(start: Callable[..., Program], tmp_path: Path) -> None:
    """SIGTERM in the middle of a load ends the program all the same."""
    diary = tmp_path / "diary"
    program = start("life.py", str(diary))
    wait_until(lambda: diary.exists() and program.state() == "loading", 30, program.log_tail)

    assert program.stop() == 0
    assert "loaded" not in diary.read_text()
