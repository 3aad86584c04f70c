"""What OpenAI's own client gets from a real model."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field
from questions import CAPITAL
from server_process import ServerProcess, wait_until

WEATHER: openai.types.chat.ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def _chat(client: openai.OpenAI, text: str = CAPITAL, model: str = "smollm2") -> str | None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=32
    )
    return answer.choices[0].message.content


def test_a_chat_gets_an_answer_that_makes_sense(client: openai.OpenAI) -> None:
    """The main job: a real model says what the capital of France is."""
    answer = _chat(client)

    assert answer is not None
    assert "Paris" in answer


async def test_an_async_stream_says_what_the_whole_answer_says(client: openai.OpenAI, server: ServerProcess) -> None:
    """The pieces of a stream, joined, are the answer; the usage comes last when asked for."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/openai/v1", api_key="none") as asynchronous:
        stream = await asynchronous.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": CAPITAL}],
            temperature=0,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]

    assert "".join(pieces) == _chat(client)
    assert len(pieces) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_a_schema_binds_the_answer(client: openai.OpenAI) -> None:
    """`response_format` with a JSON Schema gives an object of that schema."""

    class City(BaseModel):
        # Bounded, so that the answer ends before max_tokens whatever the model says.
        name: str = Field(max_length=20)
        population: int = Field(ge=0, le=9_999_999)

    answer = client.chat.completions.parse(
        model="smollm2",
        messages=[{"role": "user", "content": "Tell me about Paris as JSON with name and population."}],
        response_format=City,
        temperature=0,
        max_tokens=200,
    )

    assert answer.choices[0].message.parsed is not None
    assert answer.choices[0].message.parsed.name


def test_a_required_tool_is_called(client: openai.OpenAI) -> None:
    """A tool the client insists on is called with arguments of its schema."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=100,
    )

    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    assert isinstance(json.loads(calls[0].function.arguments)["city"], str)


def test_a_tool_may_be_left_to_the_model(client: openai.OpenAI) -> None:
    """With a tool call parser declared, `tool_choice: auto` is taken."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Hello"}],
        tools=[WEATHER],
        tool_choice="auto",
        temperature=0,
        max_tokens=16,
    )

    assert answer.choices[0].finish_reason in {"stop", "length", "tool_calls"}


def test_sampling_is_repeatable_with_a_seed(client: openai.OpenAI) -> None:
    """The same seed gives the same text."""

    def sample(seed: int) -> str | None:
        # One answer at a time: how many the engine computes at once changes the last digits of each, and so its text.
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Name a colour."}],
            temperature=1,
            seed=seed,
            max_tokens=12,
        )
        return answer.choices[0].message.content

    first, again, *others = (sample(seed) for seed in (1, 1, 2, 3))

    assert first == again
    assert {first} != set(others)


def test_several_choices_come_at_once(client: openai.OpenAI) -> None:
    """`n` gives as many answers, each with its number."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Name a colour."}],
        temperature=1,
        n=2,
        max_tokens=12,
    )

    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)


def test_log_probabilities_come_with_the_tokens(client: openai.OpenAI) -> None:
    """Each token of the answer has its own probability and those of its rivals."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": CAPITAL}],
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in logprobs.content)


def test_generation_stops_at_a_stop_string(client: openai.OpenAI) -> None:
    """The stop string ends the text and is not part of it."""
    answer = client.completions.create(
        model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=16, stop=["Paris"]
    )

    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text.strip() == ""


def test_a_prompt_may_be_tokens_and_may_be_echoed(client: openai.OpenAI, server: ServerProcess) -> None:
    """Token ids work as a prompt, and `echo` puts the prompt before the answer."""
    _, tokens = server.post("/tokenize", {"model": "smollm2", "prompt": "The capital of France is"})
    answer = client.completions.create(model="smollm2", prompt=tokens["tokens"], temperature=0, max_tokens=4, echo=True)

    assert answer.choices[0].text.startswith("The capital of France is")
    assert "Paris" in answer.choices[0].text


def test_detokenize_undoes_tokenize(server: ServerProcess) -> None:
    """Text survives the way through token ids."""
    _, tokens = server.post("/tokenize", {"prompt": "Grüße aus Köln"})
    status, text = server.post("/detokenize", {"tokens": tokens["tokens"]})

    assert status == 200
    assert text["prompt"] == "Grüße aus Köln"


def test_responses_come_whole_and_as_events(client: openai.OpenAI) -> None:
    """The Responses API answers, and streams its events in their order."""
    whole = client.responses.create(model="smollm2", input=CAPITAL, temperature=0, max_output_tokens=32)
    with client.responses.stream(model="smollm2", input=CAPITAL, temperature=0, max_output_tokens=32) as stream:
        types = [event.type for event in stream]

    assert "Paris" in whole.output_text
    assert types[0] == "response.created"
    assert types[-1] == "response.completed"
    assert "response.output_text.delta" in types


def test_the_last_event_says_that_a_response_is_incomplete(client: openai.OpenAI) -> None:
    """Its stream reached the limit of tokens."""
    with client.responses.create(model="smollm2", input=CAPITAL, max_output_tokens=2, stream=True) as stream:
        last = list(stream)[-1]

    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_a_response_is_continued_and_read_later(client: openai.OpenAI) -> None:
    """The engine reads the same tokens as if the client had sent the whole history."""
    options: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_output_tokens": 24}
    first = client.responses.create(input=CAPITAL, **options)
    ask = "What is the capital of Italy?"
    queued = client.responses.create(input=ask, previous_response_id=first.id, background=True, **options)
    history: list[Any] = [{"role": "user", "content": CAPITAL}, {"role": "assistant", "content": first.output_text}]
    whole = client.responses.create(input=[*history, {"role": "user", "content": ask}], store=False, **options)

    wait_until(lambda: client.responses.retrieve(queued.id).status in {"completed", "incomplete"}, 60)

    second = client.responses.retrieve(queued.id)
    assert second.output_text
    assert second.usage is not None
    assert whole.usage is not None
    assert second.usage.input_tokens == whole.usage.input_tokens
    assert (whole.to_dict()["store"], second.to_dict()["store"]) == (False, True)


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
def test_a_response_is_continued_over_a_websocket(client: openai.OpenAI) -> None:
    """With the engine's own events; unstored, the engine reads the same tokens as if the client sent the history."""
    options: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_output_tokens": 24, "store": False}
    ended: list[Any] = []
    with client.responses.connect() as connection:
        for text in (CAPITAL, "What is the capital of Italy?"):
            previous = ended[-1].id if ended else None
            connection.response.create(input=text, previous_response_id=previous, **options)
            types: list[str] = []
            for event in connection:
                types.append(event.type)
                if event.type in {"response.completed", "response.incomplete", "error"}:
                    ended.append(event.response)  # type: ignore[union-attr]  # an error fails here
                    break
            assert types[0] == "response.created"
            assert "response.output_text.delta" in types
    history: list[Any] = [{"role": "user", "content": CAPITAL}, {"role": "assistant", "content": ended[0].output_text}]
    whole = client.responses.create(
        input=[*history, {"role": "user", "content": "What is the capital of Italy?"}], **options
    )

    assert "Paris" in ended[0].output_text
    assert whole.usage is not None
    assert ended[1].usage.input_tokens == whole.usage.input_tokens


def test_a_stream_in_the_background_is_read_on(client: openai.OpenAI) -> None:
    """By OpenAI's client, from an offset, with the engine's own events."""
    options: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_output_tokens": 24}
    with client.responses.create(input=CAPITAL, background=True, stream=True, **options) as events:
        first = next(iter(events))
    assert first.type == "response.created"

    with client.responses.stream(response_id=first.response.id, starting_after=0) as rest:
        kinds = [event.type for event in rest]

    assert kinds[0] == "response.queued"
    assert kinds[-1] in {"response.completed", "response.incomplete"}
    assert client.responses.retrieve(first.response.id).output_text


def test_an_adapter_answers_under_its_own_name(client: openai.OpenAI) -> None:
    """A LoRA adapter is a model of its own, and really changes the answer."""
    listed = {model.id for model in client.models.list()}

    assert "wild" in listed
    assert _chat(client, model="wild") != _chat(client)


def test_every_name_leads_to_the_model(client: openai.OpenAI) -> None:
    """Name, alias and a name with a slash give the same answer and are listed with the longest length."""
    listed = {model.id: model for model in client.models.list()}
    one = client.models.retrieve("org/small")

    assert {"smollm2", "gpt-4o-mini", "org/small"} <= set(listed)
    assert one.model_extra is not None
    assert one.model_extra["max_model_len"] == 2048
    assert _chat(client, model="org/small") == _chat(client, model="gpt-4o-mini") == _chat(client)


def test_an_unknown_model_names_the_known_ones(client: openai.OpenAI) -> None:
    """404 in OpenAI's shape, with the names that would have worked."""
    with pytest.raises(openai.NotFoundError) as caught:
        _chat(client, model="nope")

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "smollm2" in caught.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_a_bad_value_is_400_and_names_its_field(client: openai.OpenAI, change: dict[str, object], param: str) -> None:
    """The error says which field is wrong."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]} | change

    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=object, body=body)

    assert caught.value.type == "invalid_request_error"
    assert caught.value.param is not None
    assert caught.value.param.split(".")[0] == param


def test_a_prompt_longer_than_the_model_takes_is_400(client: openai.OpenAI) -> None:
    """Too long is the caller's fault, and the message says how long is allowed."""
    with pytest.raises(openai.BadRequestError) as caught:
        _chat(client, text="word " * 5000)

    assert "2048" in caught.value.message
