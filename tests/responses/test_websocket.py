"""The WebSocket mode of responses, with OpenAI's client and by hand; the cases of the Open Responses suite are here.

Source of the cases: https://github.com/openresponses/openresponses, src/lib/compliance-tests.ts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.resources.responses.responses import ResponsesConnection
from response_sockets import CREATE, CREATED, LAST, events_of, open_socket, say
from server_process import ServerProcess, wait_until
from stored_server import ALICE, EMBEDDER, client_of
from upstreams import FOR_EVER, Answer, Upstream, event, stream
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

# OpenAI's client calls `websockets` in a way that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")

# Fields of a message, the status of its error, the field at fault and words of the message.
WRONG: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no type": ({"type": None}, 400, "type", "response.create"),
    "another event": ({"type": "response.steer"}, 400, "type", "response.create"),
    "not streamed": ({"stream": False}, 400, "stream", "streamed"),
    "in the background": ({"background": True, "store": True}, 400, "background", "POST"),
    "a wrong lane": ({"stream_id": "a b"}, 400, "stream_id", "letters"),
    "no text as a lane": ({"stream_id": 1}, 400, "stream_id", "letters"),
    "unknown model": ({"model": "no"}, 404, "model", "'no'"),
    "input is a number": ({"input": 5}, 400, "input", "list of items"),
    "unknown previous": ({"previous_response_id": "resp_no"}, 404, "previous_response_id", "resp_no"),
    "too large": ({"input": "a" * (1 << 20)}, 413, None, "max_body_bytes"),
}


@pytest.fixture
def socket(server: ServerProcess, upstream: Upstream) -> Iterator[ClientConnection]:
    """A connection with Alice's key; its upstream is well-behaved."""
    with open_socket(server) as socket:
        yield socket


def _types_and_last(connection: ResponsesConnection) -> tuple[list[str], Any]:
    types: list[str] = []
    for each in connection:
        types.append(each.type)
        if each.type in LAST:
            break
    return types, each


def test_responses_are_made_and_continued_over_one_connection(
    client: OpenAI, server: ServerProcess, upstream: Upstream
) -> None:
    """By OpenAI's client: unstored ones are continued, stored ones are read over HTTP; each is a request of its own."""
    with client.responses.connect() as connection:
        connection.response.create(model="ours", input="One", store=False)
        types, first = _types_and_last(connection)
        connection.response.create(model="nick", input="Two", previous_response_id=first.response.id)
        _, second = _types_and_last(connection)

    texts = [each.get("content") for each in upstream.calls[-1].json()["input"]]
    assert (texts[0], texts[1][0]["text"], texts[2]) == ("One", "You said: One", "Two")
    assert (types[0], types[-1]) == ("response.created", "response.completed")
    assert "response.output_text.delta" in types
    assert client.responses.retrieve(second.response.id) == second.response
    assert (second.response.previous_response_id, second.response.model) == (first.response.id, "nick")
    ours = ("team/alice",)
    wait_until(lambda: _logged(server)[-3:] == [("GET", 101, *ours), ("POST", 200, *ours), ("POST", 200, *ours)], 30)


def _logged(server: ServerProcess) -> list[tuple[str, int, str]]:
    ended = [each for each in server.events() if each["event"] == "request.ended"]
    return [(each["method"], each["status"], each["key"]) for each in ended if each["path"].endswith("/v1/responses")]


def test_an_unstored_response_is_known_to_its_connection_only(server: ServerProcess, socket: ClientConnection) -> None:
    """Another connection starts anew after the error that clients know."""
    first = say(socket)["response"]["id"]
    assert say(socket, previous_response_id=first)["response"]["status"] == "completed"

    with open_socket(server) as other:
        error = say(other, previous_response_id=first)
        assert (error["type"], error["error"]["code"]) == ("error", "previous_response_not_found")
        assert say(other)["response"]["status"] == "completed"


def test_a_failed_continuation_forgets_what_it_continued(socket: ClientConnection) -> None:
    """An output without its call fails before the model is asked."""
    first = say(socket)["response"]["id"]
    output = {"type": "function_call_output", "call_id": "call_missing", "output": "1"}

    failed = say(socket, previous_response_id=first, input=[output])
    again = say(socket, previous_response_id=first)
    # One that continues nothing forgets nothing.
    second = say(socket)["response"]["id"]
    third = say(socket, previous_response_id=second)["response"]["id"]
    assert say(socket, model="no")["status"] == 404
    assert {say(socket, previous_response_id=each)["type"] for each in (second, third)} == {"response.completed"}

    assert (failed["status"], failed["error"]["param"]) == (400, "input")
    assert "call_missing" in failed["error"]["message"]
    assert again["error"]["code"] == "previous_response_not_found"


def test_a_warm_up_is_continued(socket: ClientConnection, upstream: Upstream) -> None:
    """It has an id and no output; the model is asked only by the request that continues it."""
    socket.send(json.dumps({**CREATE, "input": "You are a pirate.", "generate": False}))
    created, completed = events_of(socket)
    assert not upstream.calls

    last = say(socket, previous_response_id=completed["response"]["id"])

    assert (created["type"], completed["response"]["status"]) == ("response.created", "completed")
    assert completed["response"]["output"] == []
    assert [each["content"] for each in upstream.calls[-1].json()["input"]] == ["You are a pirate.", "Hi"]
    assert last["response"]["previous_response_id"] == completed["response"]["id"]


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_what_is_wrong_and_the_connection_stays(socket: ClientConnection, case: str) -> None:
    """As an event, with the status that HTTP would have and the id of the request in the log."""
    fields, status, param, words = WRONG[case]

    error = say(socket, **fields)

    assert (error["type"], error["status"], error["error"]["param"]) == ("error", status, param), error
    assert words in error["error"]["message"]
    assert error["error"]["headers"]["x-request-id"]
    assert say(socket)["response"]["status"] == "completed"


def test_what_is_not_json_is_an_error(socket: ClientConnection) -> None:
    """Texts and bytes; JSON in bytes is a message."""
    for message in ("{", "[]", "", b"\xff\x00", '{"type": "response.create", "type": 1}'):
        socket.send(message)
        (error,) = events_of(socket)
        assert (error["type"], error["status"]) == ("error", 400), message
    socket.send(json.dumps(CREATE).encode())
    assert events_of(socket)[-1]["type"] == "response.completed"


def test_an_error_within_a_stream_is_an_error_event(socket: ClientConnection, upstream: Upstream) -> None:
    """The stream of the upstream breaks off, or it answers with an error, or at once."""
    upstream.on("/v1/responses", stream(event(CREATED, "response.created")))
    broken = say(socket)
    upstream.on("/v1/responses", Answer(400, b'{"error": {"message": "too hot", "param": "temperature"}}'))
    refused = say(socket)
    whole = {"id": "resp_1", "object": "response", "status": "completed", "output": []}
    upstream.on("/v1/responses", Answer(200, json.dumps(whole).encode()))

    assert (broken["status"], bool(broken["error"]["message"])) == (502, True)
    assert (refused["status"], refused["error"]["param"]) == (400, "temperature")
    assert say(socket)["type"] == "response.completed"


def test_a_client_that_leaves_stops_its_upstream(server: ServerProcess, upstream: Upstream) -> None:
    """Before the response begins, and while it runs."""
    for answer in (Answer(wait=FOR_EVER), stream(event(CREATED, "response.created"), FOR_EVER)):
        before = len(upstream.calls)
        upstream.on("/v1/responses", answer)
        with open_socket(server) as socket:
            socket.send(json.dumps(CREATE))
            wait_until(lambda: len(upstream.calls) > before, 30)  # noqa: B023 - it is called at once
            if not answer.wait:
                socket.recv(60)

        wait_until(lambda: upstream.calls[-1].has_left, 30)
        wait_until(lambda: _logged(server)[-1][:2] == ("POST", 499), 30)
    assert not [each for each in server.events() if each["level"] == "error"]


def test_messages_are_answered_one_after_the_other(socket: ClientConnection) -> None:
    """Those that come before the end of a response wait."""
    for number in range(8):
        socket.send(json.dumps({**CREATE, "input": str(number)}))

    outputs = [events_of(socket)[-1]["response"]["output"] for _ in range(8)]

    assert [each[0]["content"][0]["text"] for each in outputs] == [f"You said: {number}" for number in range(8)]


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [
        ("sk-unknown", "/v1/responses", 401),
        (EMBEDDER, "/v1/responses", 403),
        (ALICE, "/v1/chat/completions", 405),
        (ALICE, "/v1/nothing", 404),
    ],
)
def test_a_handshake_is_answered_as_a_request(server: ServerProcess, key: str, path: str, status: int) -> None:
    """A rejected one has the body and the headers of HTTP."""
    with pytest.raises(InvalidStatus) as raised, open_socket(server, key, path):
        pass

    response = raised.value.response
    assert (response.status_code, "x-request-id" in response.headers) == (status, True)
    assert json.loads(response.body)["error"]["message"]


def test_a_get_without_a_handshake_is_no_method(client: OpenAI) -> None:
    """It says which method the path takes."""
    with pytest.raises(openai.APIStatusError) as raised:
        client.get("/responses", cast_to=object)

    assert (raised.value.status_code, raised.value.response.headers["allow"]) == (405, "POST")


def test_a_message_that_is_too_long_for_a_frame_ends_the_connection(server: ServerProcess) -> None:
    """The server stays as it is."""
    with open_socket(server) as socket, pytest.raises(ConnectionClosed):  # noqa: PT012 - either call may find it closed
        socket.send("a" * (17 << 20))
        socket.recv(60)

    with client_of(server) as client:
        assert client.responses.create(model="ours", input="Hi").output_text
