"""Chat as completions and back: what goes in, what comes out, chunk for chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from appliance.adapters.chat_request import ChatRequestBuilder, template_messages
from appliance.adapters.chat_response import (
    ChatResponseFormat,
    StopSequences,
    chat_chunks,
    chat_completion,
    chat_logprobs,
    truncate_at_stop,
)
from appliance.adapters.templates import ChatTemplate
from appliance.core.errors import GatewayError, RequestError

Json = dict[str, Any]

FORMAT = ChatResponseFormat("face", "assistant", top_logprobs=1)
HELLO = {"messages": [{"role": "user", "content": "Hi"}]}


def _chat(source: str = "{{ messages[-1].content }}", *stop: str) -> ChatRequestBuilder:
    return ChatRequestBuilder(ChatTemplate(source), stop)


async def _stream(*chunks: Json) -> AsyncGenerator[Json]:
    for chunk in chunks:
        yield chunk


def _chunk(*choices: Json, **fields: Any) -> Json:
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 7,
        "model": "base",
        "choices": list(choices),
        **fields,
    }


def _text(text: str, reason: str | None = None, index: int = 0, **fields: Any) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason, **fields}


async def _chunks(*chunks: Json) -> list[Json]:
    return [converted async for converted in chat_chunks(_stream(*chunks), FORMAT)]


def _delta(delta: Json, reason: str | None = None, index: int = 0, **fields: Any) -> Json:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "face"}
    return {**head, "choices": [choice | fields]}


ROLE = {"role": "assistant", "content": ""}


async def test_chunks_have_the_form_of_openai() -> None:
    """Role first, text, an end of its own, in one shape."""
    converted = await _chunks(_chunk(_text("Hel")), _chunk(_text("lo")), _chunk(_text("", "stop")))

    assert converted == [_delta(ROLE), _delta({"content": "Hel"}), _delta({"content": "lo"}), _delta({}, "stop")]


async def test_text_in_the_last_chunk_comes_before_the_end() -> None:
    """vLLM sends the last text together with the reason; neither is lost, nor what vLLM says besides."""
    converted = await _chunks(_chunk(_text("Hi", "length", stop_reason=5)))

    assert converted == [_delta(ROLE), _delta({"content": "Hi"}), _delta({}, "length", stop_reason=5)]


async def test_a_repeated_finish_reason_is_sent_once() -> None:
    """Some servers repeat it with each chunk, and clients would stop at the first."""
    converted = await _chunks(_chunk(_text("a", "length")), _chunk(_text("b", "length")))

    assert [each["choices"][0]["finish_reason"] for each in converted] == [None, None, None, "length"]
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in converted) == "ab"


async def test_each_of_several_choices_has_its_role_and_end() -> None:
    """Whether they come in one chunk or in turn."""
    converted = await _chunks(
        _chunk(_text("a", index=1)), _chunk(_text("b", index=0), _text("c", "stop", index=1)), _chunk(_text("", "stop"))
    )

    assert converted == [
        _delta(ROLE, index=1),
        _delta({"content": "a"}, index=1),
        _delta(ROLE),
        _delta({"content": "b"}),
        _delta({"content": "c"}, index=1),
        _delta({}, "stop"),
        _delta({}, "stop", index=1),
    ]


async def test_empty_pieces_are_left_out() -> None:
    """A token that is half a character has no text yet."""
    converted = await _chunks(_chunk(_text("")), _chunk(_text("é")), _chunk(_text("")), _chunk(_text("", "stop")))

    assert [each["choices"][0]["delta"] for each in converted] == [ROLE, {"content": "é"}, {}]


async def test_usage_comes_after_the_end() -> None:
    """In a chunk without choices; before it, every chunk says that there is one to come."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    converted = await _chunks(
        _chunk(_text("a"), usage=None), _chunk(_text("", "stop"), usage=None), _chunk(usage=usage)
    )

    assert [each["usage"] for each in converted] == [None, None, None, usage]
    assert converted[-1]["choices"] == []
    assert converted[-1]["id"] == "chatcmpl-1"


async def test_continuous_usage_stays_in_its_chunks() -> None:
    """vLLM counts with each chunk where it is asked to."""
    converted = await _chunks(_chunk(_text("a"), usage={"total_tokens": 1}), _chunk(_text("b", "stop"), usage={"n": 2}))

    assert [each.get("usage") for each in converted] == [{"total_tokens": 1}, {"total_tokens": 1}, {"n": 2}, None]


@pytest.mark.parametrize("chunks", [[], [_chunk(_text("Hel"))], [_chunk(usage={})]], ids=["none", "cut", "usage"])
async def test_a_truncated_stream_is_an_error(chunks: list[Json]) -> None:
    """What was cut must not look complete."""
    with pytest.raises(GatewayError, match="stream ended"):
        await _chunks(*chunks)


def test_a_response_keeps_unknown_fields() -> None:
    """Counts, fingerprints and the engine's own fields, of the answer and of each choice."""
    completion = _chunk(_text("Hi", "stop", stop_reason="x", prompt_logprobs=None), usage={"n": 1}, kv={"a": 1})

    assert chat_completion(completion, FORMAT) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "face",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": "x",
                "prompt_logprobs": None,
            }
        ],
        "usage": {"n": 1},
        "kv": {"a": 1},
    }


def test_a_response_has_all_choices() -> None:
    """Each with its own index, text, end and logprobs."""
    logprobs = {"tokens": ["b"], "token_logprobs": [-1.0], "top_logprobs": None}
    converted = chat_completion(
        _chunk(_text("a", "length"), _text("b", "stop", index=1) | {"logprobs": logprobs}), FORMAT
    )

    assert [
        (each["index"], each["message"]["content"], each["finish_reason"], bool(each["logprobs"]))
        for each in converted["choices"]
    ] == [(0, "a", "length", False), (1, "b", "stop", True)]


def test_a_response_without_choices_is_an_error() -> None:
    """It is the target's fault, and said to be."""
    with pytest.raises(GatewayError, match="no choices"):
        chat_completion({"id": "1"}, FORMAT)


def test_logprobs_have_the_form_of_chats() -> None:
    """Token by token with its bytes, the likeliest alternatives first and no more than were asked for."""
    logprobs = {
        "text_offset": [0, 1, 2],
        "tokens": ["é", "bytes:\\xe4\\xbd", "\ufffd"],
        "token_logprobs": [-0.5, None, -2.0],
        "top_logprobs": [{"e": -1.5, "é": -0.5}, None, {"\ufffd": -2.0}],
    }

    assert chat_logprobs(logprobs, 1) == {
        "content": [
            {
                "token": "é",
                "logprob": -0.5,
                "bytes": [195, 169],
                "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
            },
            {"token": "bytes:\\xe4\\xbd", "logprob": -9999.0, "bytes": [0xE4, 0xBD], "top_logprobs": []},
            {
                "token": "\ufffd",
                "logprob": -2.0,
                "bytes": None,
                "top_logprobs": [{"token": "\ufffd", "logprob": -2.0, "bytes": None}],
            },
        ],
        "refusal": None,
    }
    assert chat_logprobs(None, 1) is None


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": False}, {}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"stop": "a"}, {"stop": "a"}),
        ({"stop": None, "n": None, "user": None}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        ({"stream": True, "stream_options": {"include_usage": True}},) * 2,
        ({"logit_bias": {"1": 2}, "top_k": 1, "min_p": 0.5, "seed": 0, "mine": {"a": [1]}},) * 2,
        ({"parallel_tool_calls": False, "tool_choice": "auto", "reasoning_effort": "low", "prompt": "no"}, {}),
        ({"chat_template_kwargs": {"thinking": True}, "documents": [{"text": "d"}]}, {}),
    ],
)
async def test_fields_are_converted_to_those_of_completions(asked: Json, sent: Json) -> None:
    """By the same name, by its older one, or into the prompt alone."""
    assert await _chat().completion(HELLO | asked) == {"prompt": "Hi"} | sent


async def test_a_template_gets_its_variables() -> None:
    """Documents, the effort, options of the client's own, and none of them over what is ours to say."""
    chat = _chat("{{ documents[0].text }} {{ reasoning_effort }} {{ thinking }} {{ messages | length }}")

    converted = await chat.completion(
        HELLO
        | {
            "documents": [{"text": "doc"}],
            "reasoning_effort": "low",
            "chat_template_kwargs": {"thinking": True, "messages": []},
        }
    )

    assert converted["prompt"] == "doc low True 1"


async def test_stop_sequences_of_config_and_client_are_joined() -> None:
    """One, several or none, each once."""
    chat = _chat("x", "<end>", "<eot>")

    assert (await chat.completion(HELLO))["stop"] == ["<end>", "<eot>"]
    assert (await chat.completion(HELLO | {"stop": "<eot>"}))["stop"] == ["<eot>", "<end>"]
    assert (await chat.completion(HELLO | {"stop": ["a", "b"]}))["stop"] == ["a", "b", "<end>", "<eot>"]


async def test_a_last_message_can_be_continued() -> None:
    """The prompt ends where the message does."""
    chat = _chat("{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}")
    begun = {"messages": [*HELLO["messages"], {"role": "assistant", "content": "It is "}]}

    converted = await chat.completion(begun | {"continue_final_message": True, "add_generation_prompt": False})

    assert converted["prompt"] == "<user>Hi</user><assistant>It is"
    with pytest.raises(RequestError, match="exclude each other"):
        await chat.completion(begun | {"continue_final_message": True, "add_generation_prompt": True})


def test_messages_are_converted_for_templates() -> None:
    """Parts become text, arguments of calls mappings, and a developer the system where the template knows no other."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
        {"role": "assistant", "content": "x", "tool_calls": None},
    ]

    converted = template_messages(messages, knows_developer=False)

    assert converted[0] == {"role": "system", "content": "a\nb"}
    assert converted[1]["content"] == ""
    assert converted[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert converted[2] == messages[2]
    assert converted[3] == {"role": "assistant", "content": "x"}
    assert template_messages(messages[:1], knows_developer=True)[0]["role"] == "developer"


@pytest.mark.parametrize(
    "message",
    [
        "text",
        {},
        {"role": "user", "content": 7},
        {"role": "user", "content": ["text"]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "assistant", "tool_calls": [{}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
    ],
)
async def test_an_invalid_message_is_refused_with_its_path(message: Any) -> None:
    """400 with the field at fault, whatever the client sent."""
    with pytest.raises(RequestError) as caught:
        await _chat().completion({"messages": [*HELLO["messages"], message]})

    assert str(caught.value.param).startswith("messages[1]")


@pytest.mark.parametrize(
    "fields",
    [{"logprobs": 3}, {"logprobs": True, "top_logprobs": "2"}, {"tools": {"f": 1}}, {"tools": ["f"]}],
)
async def test_a_field_of_the_wrong_type_is_refused(fields: Json) -> None:
    """Rather than sent on in some form."""
    with pytest.raises(RequestError):
        await _chat("{{ tools }}").completion(HELLO | fields)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_stop_sequence_is_found_in_any_pieces(size: int) -> None:
    """Nothing of it and nothing after it is told, and nothing before it is lost."""
    text, stop = "one <|im_ two <|im_end|> three", ["<|im_end|>", "never"]
    stops, told = StopSequences(stop), ""
    for start in range(0, len(text), size):
        if stops.is_found:
            break
        told += stops.feed(text[start : start + size])

    assert told + stops.finish() == "one <|im_ two " == truncate_at_stop(text, stop)


def test_the_beginning_of_a_stop_sequence_is_sent_at_the_end() -> None:
    """At the end, what was held back comes out."""
    stops = StopSequences(["<|im_end|>"])

    assert (stops.feed("Hi <|im"), stops.finish()) == ("Hi ", "<|im")
