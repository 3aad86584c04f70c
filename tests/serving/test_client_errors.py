"""A client's mistake is a 4xx, streamed or not, and one client's mistake is nothing to the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server_process import ServerProcess

pytestmark = [pytest.mark.slow]

USER = [{"role": "user", "content": "Hi"}]

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
RESPONSE = "/v1/responses"
MESSAGE = "/v1/messages"

NEEDED: Mapping[str, Mapping[str, Any]] = {
    CHAT: {"messages": USER, "max_tokens": 2},
    COMPLETION: {"prompt": "Hi", "max_tokens": 2},
    RESPONSE: {"input": "Hi", "max_output_tokens": 16},
    MESSAGE: {"messages": USER, "max_tokens": 2, "model": "smollm2"},
}


def _schema(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}


# Refused by the engine, or on the way to it: what vLLM finds only once a stream has begun there.
MISTAKES: list[tuple[str, Mapping[str, Any]]] = [
    (CHAT, {"logprobs": True, "top_logprobs": 21}),
    (CHAT, {"temperature": -1}),
    (CHAT, {"top_p": 2}),
    (CHAT, {"min_p": 5}),
    (CHAT, {"presence_penalty": 5}),
    (CHAT, {"repetition_penalty": -1}),
    (CHAT, {"max_tokens": 100_000}),
    (CHAT, {"stop_token_ids": [-1]}),
    (CHAT, {"allowed_token_ids": []}),
    (CHAT, {"logit_bias": {"999999": 1}}),
    (CHAT, {"n": 0}),
    (CHAT, {"n": 100_000}),
    (CHAT, {"top_k": 2**70}),
    (CHAT, {"min_tokens": 5}),
    (CHAT, {"bad_words": [""]}),
    (CHAT, {"stop": [""]}),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "it"}}}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (CHAT, {"messages": []}),
    (CHAT, {"media_io_kwargs": {"image": {}}}),
    (CHAT, {"structured_outputs": {"choice": []}}),
    (CHAT, {"structured_outputs": {"regex": "("}}),
    (CHAT, {"structured_outputs": {"regex": "\x00"}}),
    (CHAT, {"structured_outputs": {"grammar": "root ::= nothing"}}),
    (CHAT, {"structured_outputs": {"choice": [f"choice {number}" for number in range(100_000)]}}),
    (CHAT, _schema({"enum": [f"value {number}" for number in range(200_000)]})),
    (CHAT, _schema({"type": "object", "properties": {f"p{number}": {} for number in range(20_000)}})),
    (COMPLETION, {"logprobs": 21}),
    (COMPLETION, {"prompt": [999_999]}),
    (COMPLETION, {"prompt_embeds": "x"}),
    (COMPLETION, {"temperature": -1}),
    (COMPLETION, {"suffix": "x"}),
    (RESPONSE, {"temperature": -1}),
    (RESPONSE, {"top_logprobs": 21, "include": ["message.output_text.logprobs"]}),
    (RESPONSE, {"previous_response_id": "resp_1"}),
    (RESPONSE, {"background": True, "store": False}),
    (RESPONSE, {"max_output_tokens": 100_000}),
    (RESPONSE, {"structured_outputs": {"regex": "a"}, "text": {"format": {"type": "json_object"}}}),
    (MESSAGE, {"temperature": -1}),
    (MESSAGE, {"top_k": 2**70}),
    (MESSAGE, {"max_tokens": 100_000}),
]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("path", "members"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_refused_streamed_or_not(
    server: ServerProcess, path: str, members: Mapping[str, Any], is_streamed: bool
) -> None:
    """The status is the same, and the message has nothing of the server's inside in it."""
    status, body = server.post(path, {**NEEDED[path], **members, "stream": is_streamed})

    assert status in (400, 404), body
    assert body["error"]["type"] == "invalid_request_error"
    assert not any(word in body["error"]["message"] for word in ("VLLM_", "--", "Param'", "pydantic", "<class"))


@pytest.mark.parametrize(
    "members",
    [
        {"tools": [{"type": "custom", "name": "apply_patch"}]},
        {"input": [{"role": "assistant", "content": []}, {"role": "user", "content": "Hi"}]},
        {
            "input": [
                {"role": "assistant", "type": "message", "id": "m", "status": "completed", "content": []},
                {"role": "user", "content": "Hi"},
            ]
        },
    ],
    ids=lambda value: str(value)[:60],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_agents_send_is_answered(server: ServerProcess, members: Mapping[str, Any], is_streamed: bool) -> None:
    """Custom tools, and turns of the assistant without a text."""
    body = {**NEEDED[RESPONSE], **members, "stream": is_streamed}
    if is_streamed:
        events = server.stream(RESPONSE, body)
        # It may be longer than the limit of tokens.
        assert any(b"event: " + end in events for end in (b"response.completed", b"response.incomplete"))
    else:
        status, answer = server.post(RESPONSE, body)
        assert (status, answer["object"]) == (200, "response"), answer


def test_probabilities_of_the_prompt_do_not_end_the_engine(server: ServerProcess) -> None:
    """On the CPU they are refused where there are adapters, and the others' answers come."""
    plain = {**NEEDED[CHAT], "max_tokens": 20}
    bodies = [plain] * 15 + [{**plain, "prompt_logprobs": 1}]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: server.post(CHAT, body), bodies))

    assert [status for status, _ in answers] == [200] * 15 + [400]
    assert answers[-1][1]["error"]["param"] == "prompt_logprobs"
    assert server.post(COMPLETION, {**NEEDED[COMPLETION], "echo": True, "logprobs": 1})[0] == 400
    assert server.get("/readyz")[0] == 200


def test_a_schema_that_compiles_for_too_long_is_refused_and_others_are_answered(server: ServerProcess) -> None:
    """It is within the sizes, and takes more than the second of CPU time that this server gives each."""
    lengths = {f"p{number}": {"type": "string", "maxLength": 150 + number} for number in range(60)}
    small = {"type": "object", "properties": {"name": {"enum": ["a", "b"]}}, "required": ["name"]}
    with ThreadPoolExecutor(2) as pool:
        slow = {**NEEDED[CHAT], **_schema({"type": "object", "properties": lengths})}
        refused = pool.submit(server.post, CHAT, slow)
        answered = pool.submit(server.post, CHAT, {**NEEDED[CHAT], **_schema(small), "max_tokens": 30})

    status, refusal = refused.result()
    assert (status, refusal["error"]["code"]) == (400, "schema_too_complex"), refusal
    assert answered.result()[0] == 200, answered.result()


def test_a_refused_stream_is_no_success(server: ServerProcess) -> None:
    """The event of the request says so, with the status that the client has."""
    headers = {"X-Request-Id": "refused-stream"}
    body = {**NEEDED[CHAT], "logprobs": True, "top_logprobs": 21, "stream": True}

    status, _ = server.ask(CHAT, body, headers)

    event = server.request_ended("refused-stream")
    assert status == event["status"] == 400
    assert event["error"] == "RequestError"


def test_what_the_tokenizer_cannot_take_is_refused(server: ServerProcess) -> None:
    """Its requests have mistakes of the same kinds."""
    bodies: list[tuple[str, object]] = [
        ("/tokenize", {"messages": 5}),
        ("/tokenize", {"prompt": 5}),
        ("/detokenize", {"tokens": [2**70]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "x"}),
        ("/v1/messages/count_tokens", {"model": "smollm2", "messages": [{"role": "user", "content": [{"type": "x"}]}]}),
    ]

    for path, body in bodies:
        status, answer = server.post(path, body)
        assert status == 400, (path, body, answer)
        assert "pydantic" not in json.dumps(answer)
