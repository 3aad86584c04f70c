"""Whatever a method returns becomes the answer that the client wants."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel
from python_api.model_requests import events, response_json, send

from appliance.core.model import Operation
from appliance.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from appliance.openai.types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Embedding,
    Rerank,
    RerankRequest,
)
from appliance.python_api.responses import InvalidResultError

SAID = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}


class Writer(OpenAIGenerativeModel):
    """Returns what the test gives it."""

    def __init__(self, make: Callable[[], Any], name: str = "writer") -> None:
        super().__init__(name)
        self._make = make

    async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        return self._make()

    async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        return self._make()


class Encoder(OpenAIEncoderModel):
    """The same for vectors and ranks."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__("encoder")
        self._make = make

    async def create_embedding(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
        return self._make()

    async def create_rerank(self, request: RerankRequest, raw_request: Any = None, context: Any = None) -> Any:
        return self._make()


@dataclass
class AsDataclass:
    """An answer as a dataclass."""

    choices: list[dict[str, Any]]


class AsStruct(msgspec.Struct):
    """An answer as msgspec has it."""

    choices: list[dict[str, Any]]


class AsModel(BaseModel):
    """An answer as another library's model."""

    choices: list[dict[str, Any]]


@pytest.mark.parametrize("kind", [ChatCompletion, AsDataclass, AsStruct, AsModel, dict])
async def test_any_object_with_the_fields_is_an_answer(kind: Any) -> None:
    """What its author left out is filled in."""
    answer = response_json(await send(Writer(lambda: kind(choices=[SAID]))))

    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}
    assert (answer["object"], answer["model"]) == ("chat.completion", "writer")
    assert answer["id"].startswith("chatcmpl-")
    assert answer["created"] > 0


async def test_explicit_fields_are_kept() -> None:
    """Ids, times, names and fields that nobody foresaw are written as they were given."""
    given = ChatCompletion(id="mine", created=7, model="other", choices=[SAID], system_fingerprint="x")

    answer = response_json(await send(Writer(lambda: given), model="writer"))

    assert (answer["id"], answer["created"], answer["model"]) == ("mine", 7, "other")
    assert answer["system_fingerprint"] == "x"


async def test_an_answer_has_the_name_the_client_used() -> None:
    """An alias is answered under the alias."""
    answer = response_json(await send(Writer(lambda: {"choices": [SAID]}), model="alias"))

    assert answer["model"] == "alias"


def chunks(*texts: str) -> Callable[[], AsyncGenerator[Any]]:
    """A stream of chunks with these texts."""

    async def stream() -> AsyncGenerator[Any]:
        for text in texts:
            yield ChatCompletionChunk(choices=[{"delta": {"content": text}}])
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}

    return stream


async def test_chunks_become_a_stream_of_one_answer() -> None:
    """All chunks have one id, one time and one name, whatever kind of object they are."""
    made = await events(await send(Writer(chunks("Hel", "lo")), stream=True))

    assert [each["choices"][0]["delta"] for each in made] == [{"content": "Hel"}, {"content": "lo"}, {}]
    assert [each["choices"][0]["finish_reason"] for each in made] == [None, None, "length"]
    assert len({(each["id"], each["created"], each["model"], each["object"]) for each in made}) == 1
    assert made[0]["object"] == "chat.completion.chunk"


async def test_chunks_are_gathered_for_a_client_that_wants_the_whole() -> None:
    """A model that only streams serves everybody."""
    answer = response_json(await send(Writer(chunks("Hel", "lo"))))

    choice = answer["choices"][0]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": "Hello"}
    assert choice["finish_reason"] == "length"


async def test_tool_calls_are_gathered_from_their_pieces() -> None:
    """The arguments of each call are put together by its index."""

    async def stream() -> AsyncGenerator[Any]:
        for index, name, piece in ((0, "add", '{"a"'), (1, "sub", "{}"), (0, None, ": 1}")):
            call = {"index": index, "function": {"name": name, "arguments": piece}}
            yield {"choices": [{"delta": {"tool_calls": [call | ({"id": f"c{index}"} if name else {})]}}]}

    message = response_json(await send(Writer(stream)))["choices"][0]["message"]

    assert [(call["id"], call["function"]) for call in message["tool_calls"]] == [
        ("c0", {"name": "add", "arguments": '{"a": 1}'}),
        ("c1", {"name": "sub", "arguments": "{}"}),
    ]


async def test_texts_are_events_or_the_json_of_chunks() -> None:
    """What other servers' generators yield can be yielded; the end is said once."""

    async def stream() -> AsyncGenerator[str]:
        yield 'data: {"choices": [{"text": "a"}]}\n\n'
        yield '{"choices": [{"text": "b"}]}'
        yield "data: [DONE]\n\n"

    made = await events(await send(Writer(stream), Operation.COMPLETION, prompt="x", stream=True))
    gathered = response_json(await send(Writer(stream), Operation.COMPLETION, prompt="x"))

    assert [each["choices"][0]["text"] for each in made] == ["a", "b"]
    assert gathered["choices"][0]["text"] == "ab"
    assert gathered["object"] == "text_completion"


async def test_a_plain_generator_streams() -> None:
    """Its steps are made in a thread."""

    def stream() -> Iterator[Any]:
        for text in "ab":
            yield CompletionChunk(choices=[{"text": text}])

    made = await events(await send(Writer(stream), Operation.COMPLETION, prompt="x", stream=True))

    assert [each["choices"][0]["text"] for each in made] == ["a", "b", ""]


async def test_an_answer_becomes_a_stream_with_all_it_has() -> None:
    """Tool calls get their numbers, and the usage comes last, for a client that wants it."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    asked = {"stream": True, "stream_options": {"include_usage": True}}

    made = await events(await send(Writer(lambda: ChatCompletion(choices=[choice], usage=usage)), **asked))

    assert made[0]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
    assert made[1]["choices"][0]["finish_reason"] == "tool_calls"
    assert (made[2]["choices"], made[2]["usage"]) == ([], usage)


async def test_a_completion_becomes_a_stream() -> None:
    """Each of its choices is a chunk."""
    choices: list[Any] = [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]
    asked = {"prompt": "x", "stream": True}

    made = await events(await send(Writer(lambda: Completion(choices=choices)), Operation.COMPLETION, **asked))

    assert [each["choices"][0]["text"] for each in made] == ["a", "b"]


async def test_numpys_arrays_are_written_wherever_they_stand() -> None:
    """In an embedding and in a mapping alike, and as base64 where that is wanted."""
    vector = np.array([0.5, 2], np.float32)
    as_object = Encoder(lambda: Embedding(data=[{"index": 0, "embedding": vector}]))
    as_mapping = Encoder(lambda: {"data": [{"index": np.int64(0), "embedding": vector}]})

    numbers = [response_json(await send(each, Operation.EMBEDDING, input="x")) for each in (as_object, as_mapping)]
    coded = response_json(await send(as_mapping, Operation.EMBEDDING, input="x", encoding_format="base64"))

    assert [each["data"][0]["embedding"] for each in numbers] == [[0.5, 2.0], [0.5, 2.0]]
    assert numbers[0]["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    assert np.array_equal(np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4"), vector)


async def test_a_ranking_is_written_as_cohere_and_jina_have_it() -> None:
    """Results with their scores, under the name of the model."""
    results: list[Any] = [{"index": 1, "relevance_score": np.float32(0.5), "document": {"text": "b"}}]

    answer = response_json(
        await send(Encoder(lambda: Rerank(results=results)), Operation.RERANK, query="q", documents=["a"])
    )

    assert answer["results"] == [{"index": 1, "relevance_score": 0.5, "document": {"text": "b"}}]
    assert answer["model"] == "encoder"


@pytest.mark.parametrize("returned", [None, "Hi", 7, [SAID], {"choices": object()}])
async def test_invalid_result_is_the_models_error(returned: Any) -> None:
    """The error says what was returned."""
    with pytest.raises(InvalidResultError, match="the model returned"):
        await send(Writer(lambda: returned))


async def test_invalid_chunk_is_the_models_error() -> None:
    """The error says what to yield."""

    async def stream() -> AsyncGenerator[str]:
        yield "Hello"

    with pytest.raises(InvalidResultError, match="yield objects such as ChatCompletionChunk"):
        await events(await send(Writer(stream), stream=True))


@pytest.mark.parametrize(
    ("chunk", "last"),
    [
        ({"choices": [{"delta": {"content": "a"}}]}, {"delta": {}, "finish_reason": "stop"}),
        ({"choices": [{"index": 1, "delta": {"content": "a"}}]}, {"index": 1, "delta": {}, "finish_reason": "stop"}),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, {"delta": {}, "finish_reason": "length"}),
        ({"error": {"message": "m"}}, None),
    ],
)
async def test_a_stream_ends_with_a_finish_reason(chunk: Any, last: Any) -> None:
    """The server adds it where the author left it out, unless the stream has an error."""

    async def stream() -> AsyncGenerator[Any]:
        yield chunk

    made = await events(await send(Writer(stream), stream=True))

    ends = [each for each in made if "choices" in each and each["choices"][0].get("finish_reason")]
    assert [last and last.items() <= each["choices"][0].items() for each in ends] == ([True] if last else [])
