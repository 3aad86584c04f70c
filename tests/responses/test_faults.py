"""What clients do wrong, servers without a store, full stores and failing disks."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import httpx
import pytest
from response_sockets import CREATE, CREATED, events_of, open_socket, say
from server_process import ServerProcess, wait_until
from stored_server import ALICE, config_file
from upstreams import Upstream, event, stream
from websockets import Origin
from websockets.exceptions import ConnectionClosed, InvalidStatus

from appliance.config import load
from appliance.config.responses import ResponsesConfig
from appliance.core.errors import ApplianceError, ConfigError
from appliance.responses.store import open_objects

ID = "resp_" + "0" * 32
BASE = {"model": "ours", "input": "Hello"}
ITEM = {"role": "user", "content": "Hi"}


def _added(item: dict[str, Any], param: str, words: str) -> tuple[str, str, Any, int, str, str]:
    """Return a conversation whose second item is wrong, and what is said of it."""
    return "POST", "/v1/conversations", {"items": [{**ITEM, "id": "msg_a"}, item]}, 400, param, words


# The request, the status, the field at fault and words of the message.
WRONG: dict[str, tuple[str, str, Any, int, str | None, str]] = {
    "store is no boolean": ("POST", "/v1/responses", {**BASE, "store": "yes"}, 400, "store", "bool"),
    "background is no boolean": ("POST", "/v1/responses", {**BASE, "background": 1}, 400, "background", "bool"),
    "background without a store": (
        *("POST", "/v1/responses", {**BASE, "background": True, "store": False}),
        *(400, "background", "needs store: true"),
    ),
    "two histories": (
        *("POST", "/v1/responses", {**BASE, "previous_response_id": ID, "conversation": "conv_1"}),
        *(400, "previous_response_id", "exclude each other"),
    ),
    "conversation is no id": ("POST", "/v1/responses", {**BASE, "conversation": 5}, 400, "conversation", "str"),
    "input is a number": ("POST", "/v1/responses", {"model": "ours", "input": 5}, 400, "input", "list of items"),
    "an item without a type": ("POST", "/v1/responses", {"model": "ours", "input": [{}]}, 400, "input", "no type"),
    "an id that is no text": (
        *("POST", "/v1/responses", {"model": "ours", "input": [{**ITEM, "id": []}]}),
        *(400, "input", "must be a text"),
    ),
    "a reference to nothing": (
        *("POST", "/v1/responses", {"model": "ours", "input": [{"type": "item_reference", "id": "msg_x"}]}),
        *(404, "input", "msg_x"),
    ),
    "unknown previous": (
        "POST",
        "/v1/responses",
        {**BASE, "previous_response_id": ID},
        404,
        "previous_response_id",
        ID,
    ),
    "unknown conversation": (
        "POST",
        "/v1/responses",
        {**BASE, "conversation": "conv_x"},
        404,
        "conversation",
        "conv_x",
    ),
    "unknown model": ("POST", "/v1/responses", {**BASE, "model": "no", "background": True}, 404, "model", "no"),
    "an id that is a path": ("GET", "/v1/responses/..%2F..%2Fetc", None, 404, None, ""),
    "an id of another kind": ("GET", "/v1/responses/conv_" + "0" * 32, None, 404, "response_id", "not found"),
    "too many items": ("POST", "/v1/conversations", {"items": [ITEM] * 21}, 400, "items", "at most 20"),
    "metadata is a text": ("POST", "/v1/conversations", {"metadata": "a"}, 400, "metadata", "object"),
    "long metadata": ("POST", "/v1/conversations", {"metadata": {"a": "b" * 513}}, 400, "metadata", "512"),
    "metadata of a response": ("POST", "/v1/responses", {**BASE, "metadata": {"a": 1}}, 400, "metadata", "str"),
    "large metadata of a response": (
        *("POST", "/v1/responses", {**BASE, "metadata": {str(each): "" for each in range(17)}}),
        *(400, "metadata", "16 entries"),
    ),
    "an item of no known type": _added({"type": "nope"}, "items[1].type", "'nope'"),
    "an item whose type is a list": _added({"type": ["message"]}, "items[1].type", "['message']"),
    "a part as an item": _added({"type": "input_image"}, "items[1].type", "'input_image'"),
    "an unknown role": _added({"role": "king", "content": "Hi"}, "items[1].role", "one of user"),
    "content that is a number": _added({**ITEM, "content": 7}, "items[1].content", "list of parts"),
    "content that has a text": _added({**ITEM, "content": ["Hi"]}, "items[1].content[0]", "input_text"),
    "a part without its text": _added(
        *({**ITEM, "content": [{"type": "input_text"}]}, "items[1].content[0].text", "must be a text")
    ),
    "a call without arguments": _added(
        *({"type": "function_call", "call_id": "1", "name": "a"}, "items[1].arguments", "must be a text")
    ),
    "an item id that is a path": _added({**ITEM, "id": "../../x"}, "items[1].id", "letters"),
    "an item id twice": _added({**ITEM, "id": "msg_a"}, "items[1].id", "earlier item"),
    "a body that is no JSON": ("POST", "/v1/conversations", b"{", 400, None, "JSON"),
    "no method": ("PATCH", f"/v1/responses/{ID}", None, 405, None, "PATCH"),
}

# Of a response that exists.
WRONG_OF_STORED: dict[str, tuple[str, str, int, str | None, str]] = {
    "limit": ("GET", "/input_items?limit=0", 400, "limit", "from 1 to 100"),
    "limit is a text": ("GET", "/input_items?limit=a", 400, "limit", "a number"),
    "order": ("GET", "/input_items?order=up", 400, "order", "asc or desc"),
    "after": ("GET", "/input_items?after=msg_1", 400, "after", "no item"),
    "not in the background": ("POST", "/cancel", 400, "response_id", "background: true"),
    "not streamed": ("GET", "?stream=true", 400, "stream", "stream: true"),
}


def ask(server: ServerProcess, method: str, path: str, body: Any = None, key: str = ALICE) -> httpx.Response:
    """Send a request; a body of bytes is sent as it is."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return httpx.request(method, server.url + path, content=content, headers=headers, timeout=60)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(server: ServerProcess, case: str) -> None:
    """The error says which field, and what would be right."""
    method, path, body, status, param, words = WRONG[case]

    answer = ask(server, method, path, body)

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert words in error["message"]


def test_what_is_wrong_with_a_stored_response_is_named(server: ServerProcess, upstream: Upstream) -> None:
    """Parameters of lists and streams, and what only responses in the background can do."""
    created = ask(server, "POST", "/v1/responses", BASE).json()

    for case, (method, path, status, param, words) in WRONG_OF_STORED.items():
        answer = ask(server, method, f"/v1/responses/{created['id']}{path}")
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param), case
        assert words in error["message"], case


def test_a_history_that_is_too_long_is_refused(server: ServerProcess, upstream: Upstream) -> None:
    """The request with its history is no larger than any other may be."""
    text = "a" * (700 << 10)
    first = ask(server, "POST", "/v1/responses", {**BASE, "input": text}).json()

    answer = ask(server, "POST", "/v1/responses", {**BASE, "previous_response_id": first["id"]})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert ask(server, "DELETE", f"/v1/responses/{first['id']}").status_code == 200


def test_without_a_store_each_response_says_so(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """Whole and streamed; what needs a store is refused, and its routes say how to have one."""
    server = serve(file=config_file(tmp_path, upstream, "")).wait_until_ready(60)

    whole = ask(server, "POST", "/v1/responses", {**BASE, "store": True}).json()
    streamed = ask(server, "POST", "/v1/responses", {**BASE, "store": True, "stream": True}).text
    refused = [
        ask(server, "POST", "/v1/responses", {**BASE, field: value})
        for field, value in (("background", True), ("conversation", "conv_1"))
    ]
    absent = [
        ask(server, "GET", f"/v1/responses/{ID}"),
        ask(server, "DELETE", f"/v1/responses/{ID}"),
        ask(server, "POST", "/v1/conversations", {}),
    ]

    assert whole["store"] is False
    stores = [json.loads(line[5:])["response"]["store"] for line in streamed.splitlines() if '"response":' in line]
    assert stores == [False, False]
    assert [(each.status_code, each.json()["error"]["code"]) for each in refused] == [(400, "responses_not_stored")] * 2
    assert [(each.status_code, each.json()["error"]["code"]) for each in absent] == [(404, "responses_not_stored")] * 3
    _require_websockets(server, upstream)


def _require_websockets(server: ServerProcess, upstream: Upstream) -> None:
    """Responses are continued without a store; other sites have no access; a server that stops closes connections."""
    with pytest.raises(InvalidStatus) as raised, open_socket(server, origin=Origin("https://evil.example")):
        pass
    assert raised.value.response.status_code == 403
    with open_socket(server, path="/openai/v1/responses") as socket:
        first = say(socket)["response"]
        second = say(socket, previous_response_id=first["id"])["response"]
        unknown = say(socket, previous_response_id=ID)
        assert (first["store"], second["previous_response_id"]) == (False, first["id"])
        assert len(upstream.calls[-1].json()["input"]) == 3
        assert unknown["error"]["code"] == "previous_response_not_found"
        completed = {**CREATED["response"], "status": "completed", "output": []}
        last = event({"type": "response.completed", "response": completed}, "response.completed")
        upstream.on("/v1/responses", stream(event(CREATED, "response.created"), 0.5, last))
        with open_socket(server) as idle:
            socket.send(json.dumps(CREATE))
            assert json.loads(socket.recv(60))["type"] == "response.created"

            server.process.send_signal(signal.SIGTERM)

            assert events_of(socket)[-1]["type"] == "response.completed"
            for each in (idle, socket):
                with pytest.raises(ConnectionClosed) as closed:
                    each.recv(60)
                assert closed.value.rcvd is not None, server.log_tail()
                assert closed.value.rcvd.code == 1001
    assert server.process.wait(60) == 0, server.log_tail()


def test_a_store_in_memory_ends_with_the_server(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """Its workers share it, and nothing of it is left."""
    more = "responses: {store: memory}\nserver: {workers: 2}\n"
    server = serve(file=config_file(tmp_path, upstream, more)).wait_until_ready(60)
    created = ask(server, "POST", "/v1/responses", BASE).json()
    answers = [ask(server, "GET", f"/v1/responses/{created['id']}") for _ in range(6)]
    pattern = f"appliance-responses-*/*/_/{created['id']}"
    (path,) = (path for place in (Path("/dev/shm"), Path(gettempdir())) for path in place.glob(pattern))
    folder = path.parents[2]

    assert [each.json() for each in answers] == [created] * 6
    assert server.stop() == 0, server.log_tail()
    assert not folder.exists()


def test_an_answer_that_cannot_be_stored_is_given(
    serve: Callable[..., ServerProcess], upstream: Upstream, tmp_path: Path
) -> None:
    """It says that it is not stored; what needs the store is 503 with the reason. Metrics have the store's size."""
    folder = tmp_path / "responses"
    more = f"responses: {{store: file, directory: {folder}, max_bytes: 1048576}}"
    server = serve(file=config_file(tmp_path, upstream, more)).wait_until_ready(60)
    assert ask(server, "POST", "/v1/responses", BASE).json()["store"] is True
    large = ask(server, "POST", "/v1/responses", {**BASE, "input": "a" * (1 << 21)})
    assert (large.status_code, large.json()["store"]) == (200, False)
    wait_until(lambda: 'appliance_stored_objects{store="responses"} 1.0' in ask(server, "GET", "/metrics").text, 30)

    folder.rename(tmp_path / "away")
    folder.touch()

    unstored, streamed = (ask(server, "POST", "/v1/responses", {**BASE, "stream": stream}) for stream in (False, True))
    assert (unstored.status_code, unstored.json()["store"]) == (200, False)
    assert '"store":false' in streamed.text.splitlines()[-2]
    for method, path, body in (
        ("POST", "/v1/conversations", {}),
        ("GET", f"/v1/responses/{ID}", None),
        ("POST", "/v1/responses", {**BASE, "background": True}),
    ):
        answer = ask(server, method, path, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable"), path
        assert str(tmp_path) not in answer.text
    events = {each["event"] for each in server.events()}
    assert {"store.failed", "response.not_stored"} <= events
    folder.unlink()
    statuses: list[int] = []

    def is_queued() -> bool:
        statuses.append(ask(server, "POST", "/v1/responses", {**BASE, "background": True}).status_code)
        return statuses[-1] == 200

    # The directory is made again.
    wait_until(is_queued, 30)
    assert set(statuses) <= {200, 503}
    assert server.stop() == 0, server.log_tail()


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("{store: file}", "no directory"),
        ("{store: memory, directory: /tmp/a}", "store: file, or no directory"),
        ("{store: disk}", "memory"),
        ("{max_bytes: 1}", "1048576"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, upstream: Upstream, store: str, message: str) -> None:
    """Before the server starts."""
    with pytest.raises(ConfigError, match=message):
        load(config_file(tmp_path, upstream, f"responses: {store}"))


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """Before the server starts."""
    (tmp_path / "file").touch()
    with pytest.raises(ApplianceError, match=r"responses\.directory must be one that this user can write"):
        open_objects(ResponsesConfig(store="file", directory=tmp_path / "file" / "responses"), None)


def test_a_directory_of_another_server_ends_the_start(
    serve: Callable[..., ServerProcess], server: ServerProcess, upstream: Upstream, tmp_path: Path
) -> None:
    """The log names the key; the workers of one server share the directory."""
    more = f"responses: {{store: file, directory: {server.log.with_name('responses')}}}"
    second = serve(file=config_file(tmp_path, upstream, more))

    assert second.process.wait(60) == 1
    assert "another server uses it; responses.directory must be" in second.log_tail()
