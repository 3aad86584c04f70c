"""Several responses at once over one WebSocket, with OpenAI's client and by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.lib.responses_websocket import ResponsesWebSocketLimits, ResponsesWebSocketSession
from response_sockets import CREATE, LAST, open_socket, say
from server_process import ServerProcess, wait_until
from upstreams import SSE, Answer, Asked, Piece, Upstream, sse, well_behaved
from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")

LIMITS = ResponsesWebSocketLimits(
    max_lanes=8, max_events_per_lane=64, max_events=256, max_bytes_per_lane=1 << 20, max_bytes=1 << 22
)


class _Gate:
    """Holds back an upstream's answers to the input `Wait` until it is opened."""

    def __init__(self, upstream: Upstream) -> None:
        self._is_open = threading.Event()
        self._running = self.most_running = 0
        upstream.on("/v1/responses", self._answer)

    def open(self) -> None:
        self._is_open.set()

    def _answer(self, asked: Asked) -> Answer:
        waits = b'"Wait"' in asked.body
        return Answer(body=self._events(asked), media_type=SSE) if waits else well_behaved(asked)

    def _events(self, asked: Asked) -> Iterator[Piece]:
        self._running += 1
        self.most_running = max(self.most_running, self._running)
        while not self._is_open.is_set():
            yield 0.02
        yield from sse(asked)
        self._running -= 1


@pytest.fixture
def socket(server: ServerProcess, upstream: Upstream) -> Iterator[ClientConnection]:
    """A connection with Alice's key; its upstream is well-behaved."""
    with open_socket(server) as socket:
        yield socket


def _send(socket: ClientConnection, lane: str | None, **fields: Any) -> None:
    socket.send(json.dumps({**CREATE, "model": "other", **({"stream_id": lane} if lane else {}), **fields}))


def _ends(socket: ClientConnection, count: int) -> list[dict[str, Any]]:
    """Return the last events of some responses, in the order in which they end."""
    ends: list[dict[str, Any]] = []
    while len(ends) < count:
        event = json.loads(socket.recv(60))
        ends += [event] if event["type"] in LAST else []
    return ends


def test_lanes_run_at_once_and_fork(client: OpenAI, upstream: Upstream) -> None:
    """By OpenAI's client: one lane answers while another waits, and continues what that one has said."""
    gate = _Gate(upstream)
    options: Any = {"max_size": None}

    with (
        client.responses.connect(websocket_connection_options=options) as connection,
        ResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        slow, fast = session.lane("slow.1"), session.lane("fast_2")
        slow.send({"type": "response.create", "model": "ours", "input": "Wait", "store": False})
        fast.send({"type": "response.create", "model": "ours", "input": "Two", "store": False})
        first = fast.get_final_response()
        gate.open()
        last = slow.get_final_response()
        fork: Any = {**CREATE, "previous_response_id": last.id, "input": "Three"}
        session.default.send(fork)
        forked = session.default.get_final_response()

    assert [each.output_text for each in (first, last, forked)] == [
        "You said: Two",
        "You said: Wait",
        "You said: Three",
    ]
    assert len(upstream.calls[-1].json()["input"]) == 3


def test_a_lane_answers_in_order_and_its_events_name_it(socket: ClientConnection, upstream: Upstream) -> None:
    """Those of the lane without a name name none; errors are named, too."""
    gate = _Gate(upstream)
    _send(socket, "a", input="Wait")
    _send(socket, "a", input="Second")
    _send(socket, None, input="Default")
    _send(socket, "b", model="no")
    before = _ends(socket, 2)
    gate.open()

    lanes = {each.get("stream_id"): each["type"] for each in before}
    assert lanes == {None: "response.completed", "b": "error"}
    texts = [each["response"]["output"][0]["content"][0]["text"] for each in _ends(socket, 2)]
    assert texts == ["You said: Wait", "You said: Second"]


def test_a_failed_fork_keeps_what_another_lane_continues(socket: ClientConnection) -> None:
    """A failure within a lane forgets it, as without lanes."""
    output = {"type": "function_call_output", "call_id": "call_missing", "output": "1"}
    parent = say(socket, stream_id="a")["response"]["id"]

    failed = say(socket, stream_id="b", previous_response_id=parent, input=[output])
    kept = say(socket, stream_id="a", previous_response_id=parent)
    assert (failed["status"], failed["stream_id"]) == (400, "b")
    assert kept["response"]["status"] == "completed"

    say(socket, stream_id="a", previous_response_id=parent, input=[output])
    assert say(socket, stream_id="b", previous_response_id=parent)["error"]["code"] == "previous_response_not_found"


def test_a_connection_has_so_many_lanes(socket: ClientConnection, upstream: Upstream) -> None:
    """16 run at once, the others wait; the 33rd name is an error, and the lanes before it go on."""
    gate = _Gate(upstream)
    for number in range(32):
        _send(socket, f"lane-{number}", input="Wait")
    _send(socket, "lane-32")

    (refused,) = _ends(socket, 1)
    wait_until(lambda: len(upstream.calls) == 16, 30)
    gate.open()
    ends = _ends(socket, 32)

    assert (refused["stream_id"], refused["error"]["code"]) == ("lane-32", "websocket_stream_limit_reached")
    assert {each["stream_id"] for each in ends} == {f"lane-{number}" for number in range(32)}
    assert {each["type"] for each in ends} == {"response.completed"}
    assert gate.most_running == 16


def test_a_client_that_leaves_stops_its_lanes(server: ServerProcess, upstream: Upstream) -> None:
    """Those that run, and those that wait."""
    gate = _Gate(upstream)
    with open_socket(server) as socket:
        for lane in ("a", "b", "b"):
            _send(socket, lane, input="Wait")
        wait_until(lambda: len(upstream.calls) == 2, 30)

    wait_until(lambda: all(each.has_left for each in upstream.calls), 30)
    gate.open()
    assert len(upstream.calls) == 2
