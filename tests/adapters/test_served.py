"""Adapters as OpenAI's client sees them, and as their targets do."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import Response
from server_process import ServerProcess, wait_until
from services import vector
from upstream_quirks import ERRORS, STREAMS
from upstreams import Answer, Asked, Upstream, error, event, json_answer, stream

pytestmark = pytest.mark.contract

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Grüße, Дом, 你好"}]
PROMPT = "<|im_start|>user\nGrüße, Дом, 你好<|im_end|>\n<|im_start|>assistant\n"
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def _asked(scripted: Upstream) -> dict[str, Any]:
    """The body of the one request that arrived."""
    (asked,) = scripted.calls
    body: dict[str, Any] = asked.json()
    return body


def _said(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_is_sent_as_a_completion(client: openai.OpenAI, scripted: Upstream) -> None:
    """The messages go through the template, and the text comes back as a message under the name the client used."""
    done = client.chat.completions.create(model="chat", messages=HELLO, max_completion_tokens=9)

    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].message.content == f"You said: {PROMPT}"
    assert done.choices[0].finish_reason == "stop"
    assert done.object == "chat.completion"
    assert done.model == "chat"
    assert done.id.startswith("chatcmpl-")
    assert done.usage is not None
    assert done.usage.prompt_tokens == 3
    assert scripted.calls[0].path == "/v1/completions"
    assert scripted.calls[0].header("authorization") == "Bearer secret-key"
    assert _asked(scripted) == {
        "model": "base",
        "prompt": PROMPT,
        "max_tokens": 9,
        "stop": ["<|im_end|>"],
        "add_special_tokens": False,
    }


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_messages_and_responses_are_chats(client: openai.OpenAI, scripted: Upstream, is_streamed: bool) -> None:
    """Anthropic's and OpenAI's newer protocol are translated to a chat, which becomes a completion as any other."""
    text, hello = f"You said: {PROMPT}", str(HELLO[0]["content"])
    base_url = str(client.base_url).removesuffix("/v1/")
    with anthropic.Anthropic(base_url=base_url, api_key=client.api_key) as claude:
        if is_streamed:
            with claude.messages.stream(model="chat", max_tokens=9, messages=HELLO) as events:  # type: ignore[arg-type]  # the same shape
                message: anthropic.types.Message = events.get_final_message()
            with client.responses.stream(model="chat", input=hello) as responses:
                response: Response = responses.get_final_response()
        else:
            message = claude.messages.create(model="chat", max_tokens=9, messages=HELLO)  # type: ignore[arg-type]  # the same shape
            response = client.responses.create(model="chat", input=hello)

    assert [block.text for block in message.content if block.type == "text"] == [text]
    assert (message.model, message.stop_reason, message.usage.input_tokens) == ("chat", "end_turn", 3)
    assert (response.output_text, response.model) == (text, "chat")
    assert [asked.json()["prompt"] for asked in scripted.calls] == [PROMPT, PROMPT]


def test_every_field_is_forwarded(client: openai.OpenAI, scripted: Upstream) -> None:
    """Sampling, choices, bias, logprobs, users and fields that nobody here knows; the newer limit wins."""
    sampling: dict[str, Any] = {
        "temperature": 0.25,
        "top_p": 0.5,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "seed": 7,
        "n": 2,
        "logit_bias": {"5": -100},
        "user": "me",
    }
    extras = {"top_k": 3, "min_p": 0.1, "stop_token_ids": [2], "structured_outputs": {"regex": "a+"}, "mine": [1, None]}

    client.chat.completions.create(
        model="chat",
        messages=HELLO,
        max_tokens=5,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=2,
        stop="END",
        response_format={"type": "json_object"},
        extra_body=extras,
        **sampling,
    )

    assert _asked(scripted) == {
        "model": "base",
        "prompt": PROMPT,
        "max_tokens": 6,
        "logprobs": 2,
        "stop": ["END", "<|im_end|>"],
        "response_format": {"type": "json_object"},
        "add_special_tokens": False,
        **sampling,
        **extras,
    }


def test_a_chat_without_a_limit_has_a_default_limit(client: openai.OpenAI, scripted: Upstream) -> None:
    """A completion ends after 16 tokens by itself; a chat has room, as the config says or as much as is usual."""
    client.chat.completions.create(model="chat", messages=HELLO)
    client.chat.completions.create(model="plain", messages=HELLO)

    assert [asked.json()["max_tokens"] for asked in scripted.calls] == [1024, 77]


def test_a_chat_stream_has_the_form_of_openai(client: openai.OpenAI, scripted: Upstream) -> None:
    """The role in the first chunk alone, reasons only at the end, then the usage, and one id for all."""
    chunks = list(
        client.chat.completions.create(
            model="plain", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )

    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks if chunk.choices]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert deltas[0] == {"role": "bot", "content": ""}
    assert deltas[-1] == {}
    assert all(set(delta) == {"content"} and delta["content"] for delta in deltas[1:-1])
    assert _said(chunks) == "You said: Grüße, Дом, 你好"
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 3
    assert {(chunk.id, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, "plain", "chat.completion.chunk")
    }
    assert _asked(scripted)["stream_options"] == {"include_usage": True}


def test_a_stream_has_no_usage_unless_requested(client: openai.OpenAI, scripted: Upstream) -> None:
    """Every chunk has its choice."""
    chunks = list(client.chat.completions.create(model="chat", messages=HELLO, stream=True))

    assert all(chunk.choices for chunk in chunks)
    assert "stream_options" not in _asked(scripted)


def test_tools_are_rendered_by_the_template(client: openai.OpenAI, scripted: Upstream) -> None:
    """Where the template has a place for them, they are in the prompt; where they may not be called, they are not."""
    client.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL])
    client.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL], tool_choice="none")
    with_tools, without = (asked.json() for asked in scripted.calls)

    assert with_tools["prompt"].startswith(f"<tools>{json.dumps([TOOL])}</tools>")
    assert without["prompt"] == PROMPT
    assert not {"tools", "tool_choice"} & (with_tools.keys() | without.keys())


CALLING = 'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


def test_a_tool_call_in_the_text_is_returned(client: openai.OpenAI, scripted: Upstream) -> None:
    """Whole, with its reason, and for a client that offers no tools the text as it is."""
    scripted.on("/v1/completions", json_answer({"id": "c", "created": 1, "choices": [{"index": 0, "text": CALLING}]}))

    called = client.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL]).choices[0]
    plain = client.chat.completions.create(model="chat", messages=HELLO).choices[0]

    assert called.finish_reason == "tool_calls"
    assert called.message.content == "Let me look."
    assert called.message.tool_calls is not None
    (call,) = called.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Zürich"})
    assert (plain.finish_reason, plain.message.content) == ("stop", CALLING)


def test_a_tool_call_in_a_stream_is_returned(client: openai.OpenAI, scripted: Upstream) -> None:
    """Its marks are in no delta, however they were cut."""
    pieces = [CALLING[start : start + 5] for start in range(0, len(CALLING), 5)]
    chunks: list[bytes | float] = [
        event({"id": "c", "created": 1, "choices": [{"index": 0, "text": piece, "finish_reason": None}]})
        for piece in pieces
    ]
    end = event({"id": "c", "created": 1, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    scripted.on("/v1/completions", stream(*chunks, end, event("[DONE]")))

    made = list(client.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL], stream=True))
    calls = [call for chunk in made for call in chunk.choices[0].delta.tool_calls or ()]

    assert _said(made) == "Let me look.\n"
    assert [(call.index, call.function and call.function.name) for call in calls] == [(0, "weather")]
    assert made[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "plain", "tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"extra_body": {"chat_template": "{{ messages }}"}}, "chat_template"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"model": "service", "logprobs": True}, "logprobs"),
        ({"model": "service", "tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"model": "service", "n": 1000}, "n"),
    ],
)
def test_unsupported_fields_are_refused_by_name(
    client: openai.OpenAI, scripted: Upstream, fields: dict[str, Any], param: str | None
) -> None:
    """Nothing is lost in silence: 400 in OpenAI's shape, and the target is not asked."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**({"model": "chat", "messages": HELLO} | fields))

    assert caught.value.param == param or (param is None and caught.value.param == "messages[0].content")
    assert scripted.calls == []


@pytest.mark.parametrize(("fields", "param"), [({"prompt": ["a"] * 2049}, "prompt"), ({"prompt": "a", "n": 129}, "n")])
def test_a_request_over_the_limits_is_refused(
    client: openai.OpenAI, scripted: Upstream, fields: dict[str, Any], param: str
) -> None:
    """Each prompt and choice is a request to the target."""
    with pytest.raises(openai.BadRequestError, match="in one request") as caught:
        client.completions.create(model="service", **fields)

    assert caught.value.param == param
    assert scripted.calls == []


@pytest.mark.parametrize("delay", ["7", "Wed, 21 Oct 2037 07:28:00 GMT"])
def test_a_refusal_of_the_target_keeps_its_retry_after(client: openai.OpenAI, scripted: Upstream, delay: str) -> None:
    """Seconds or a date, as through a proxy."""
    scripted.on("/v1/completions", Answer(429, b'{"error": {"message": "slow down"}}', headers={"Retry-After": delay}))

    with pytest.raises(openai.RateLimitError, match="slow down") as refused:
        client.chat.completions.create(model="chat", messages=HELLO)

    assert refused.value.response.headers["retry-after"] == delay


def test_a_refusal_of_the_target_keeps_status_and_message(client: openai.OpenAI, scripted: Upstream) -> None:
    """Status, message, param and code go through, whole and before a stream's first byte."""
    scripted.on("/v1/completions", error(422, "too long by far", param="prompt", code="too_long"))

    for streamed in (False, True):
        with pytest.raises(openai.UnprocessableEntityError, match="too long by far") as caught:
            client.chat.completions.create(model="chat", messages=HELLO, stream=streamed)
        assert (caught.value.param, caught.value.code) == ("prompt", "too_long")


@pytest.mark.parametrize("oddity", ERRORS)
def test_unusual_errors_of_a_target_become_openai_errors(
    adapters: ServerProcess, scripted: Upstream, oddity: str
) -> None:
    """The status stays; whatever the body was, there is a message, and a code only if it is a word."""
    answer = ERRORS[oddity]
    scripted.on("/v1/completions", answer)

    status, said = adapters.post("/v1/chat/completions", {"model": "chat", "messages": HELLO})

    assert status == answer.status
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert said["error"]["message"]
    assert "<html>" not in said["error"]["message"]
    assert said["error"]["code"] is None or not said["error"]["code"].isdecimal()


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(client: openai.OpenAI, scripted: Upstream) -> None:
    """What came before it was delivered; then the client's own library raises with the target's words."""
    chunk = {"id": "c", "created": 1, "choices": [{"index": 0, "text": "Hel", "finish_reason": None}]}
    scripted.on("/v1/completions", stream(event(chunk), event({"error": {"message": "it broke", "code": 500}})))

    chunks = iter(client.chat.completions.create(model="chat", messages=HELLO, stream=True))
    said = [next(chunks).choices[0].delta.content for _ in range(2)]

    assert said == ["", "Hel"]
    with pytest.raises(openai.APIError, match="it broke"):
        next(chunks)


def test_completions_are_forwarded(client: openai.OpenAI, scripted: Upstream) -> None:
    """Whole and streamed, under the name that the client used."""
    whole = client.completions.create(model="talk", prompt="Hi", max_tokens=3)
    chunks = list(client.completions.create(model="chat", prompt="Hi", stream=True))

    assert whole.choices[0].text == "You said: Hi"
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "You said: Hi"
    assert (whole.model, {chunk.model for chunk in chunks}) == ("talk", {"chat"})
    assert [asked.json()["model"] for asked in scripted.calls] == ["base", "base"]


@pytest.mark.parametrize("model", ["service", "tensors", "instances"])
def test_a_service_completes(client: openai.OpenAI, scripted: Upstream, model: str) -> None:
    """Text in, text out, over any protocol; choices and prompts side by side, in OpenAI's order."""
    done = client.completions.create(model=model, prompt=["a", "b"], n=2)

    assert [choice.text for choice in done.choices] == ["Echo: a", "Echo: a", "Echo: b", "Echo: b"]
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in done.choices} == {"stop"}


@pytest.mark.parametrize("model", ["service", "tensors", "stacked"])
def test_a_service_chats_through_a_template(client: openai.OpenAI, scripted: Upstream, model: str) -> None:
    """The prompt is rendered, and the text ends before the stop text that it holds."""
    done = client.chat.completions.create(model=model, messages=HELLO, stop=["Дом"], temperature=0.75)

    assert done.choices[0].message.content == "Echo: <|im_start|>user\nGrüße, "
    assert done.choices[0].finish_reason == "stop"
    assert done.model == model


def test_a_request_template_renders_the_request(client: openai.OpenAI, scripted: Upstream) -> None:
    """The client's fields fill it, defaults stand in for those it leaves out, and headers of the config go along."""
    client.chat.completions.create(model="service", messages=HELLO, temperature=0.75)
    client.chat.completions.create(model="service", messages=HELLO, temperature=None)
    client.completions.create(model="service", prompt='a "quoted" \\ line\n', max_tokens=4)
    chat, default, completion = scripted.calls

    assert chat.json() == {"inputs": PROMPT, "parameters": {"temperature": 0.75}}
    assert default.json() == {"inputs": PROMPT, "parameters": {"temperature": 1}}
    assert completion.json() == {"inputs": 'a "quoted" \\ line\n', "most": 4}
    assert chat.header("x-team") == "search"
    assert chat.header("authorization") is None


def test_a_service_reports_tokens(client: openai.OpenAI, scripted: Upstream) -> None:
    """Counts are found where the config says, whole and streamed."""
    whole = client.chat.completions.create(model="service", messages=[{"role": "user", "content": "Hi"}])
    *_, last = client.completions.create(
        model="service", prompt="a b", stream=True, stream_options={"include_usage": True}
    )

    assert whole.usage is not None
    assert whole.usage.completion_tokens == 3
    assert whole.usage.prompt_tokens == len("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (2, 3, 5)


def test_a_service_streams_line_by_line(client: openai.OpenAI, scripted: Upstream) -> None:
    """However its lines are cut, the words come as they are, and its own word for the end becomes OpenAI's."""
    chunks = list(client.completions.create(model="service", prompt="Grüße, Дом, 你好", stream=True))

    assert [chunk.choices[0].text for chunk in chunks] == ["Echo:", " Grüße,", " Дом,", " 你好", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, None, "length"]
    assert scripted.calls[0].path == "/generate_stream"


@pytest.mark.parametrize("model", ["service", "stacked", "tensors"])
def test_a_stream_of_a_service_ends_at_a_stop_sequence(client: openai.OpenAI, scripted: Upstream, model: str) -> None:
    """A stop text that is spread over pieces still ends the answer before it."""
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, stop="Дом, 你", stream=True))

    assert _said(chunks) == "Echo: <|im_start|>user\nGrüße, "
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"


def test_choices_of_a_stream_are_generated_in_parallel(client: openai.OpenAI, scripted: Upstream) -> None:
    """Each choice has its role, its text and its end."""
    chunks = list(client.chat.completions.create(model="service", messages=HELLO, n=3, stream=True))
    choices = [choice for chunk in chunks for choice in chunk.choices]

    for index in range(3):
        mine = [choice for choice in choices if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert [choice.delta.role for choice in mine[1:]] == [None] * (len(mine) - 1)
        assert "".join(choice.delta.content or "" for choice in mine) == "Echo: <|im_start|>user\nGrüße, Дом, 你好"
        assert [bool(choice.finish_reason) for choice in mine] == [False] * (len(mine) - 1) + [True]


@pytest.mark.parametrize("model", ["service", "tensors", "vectors"])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_a_service_embeds(client: openai.OpenAI, scripted: Upstream, model: str, form: Any) -> None:
    """Vectors in the order of the texts, whatever the encoding, as many requests as the batches are."""
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]

    done = client.embeddings.create(model=model, input=texts, encoding_format=form)
    plain = client.embeddings.create(model=model, input="a")

    assert plain.data[0].embedding == vector("a")
    assert [each.index for each in done.data] == [0, 1, 2, 3, 4]
    if form == "float":
        assert [each.embedding for each in done.data] == [vector(text) for text in texts]
    assert len(scripted.calls) == {"service": 4, "tensors": 3, "vectors": 2}[model]
    assert done.usage.prompt_tokens == (15 if model == "service" else 0)


def test_dimensions_that_a_model_lacks_are_refused(client: openai.OpenAI, scripted: Upstream) -> None:
    """Vectors of another length than asked for would be a silent lie."""
    with pytest.raises(openai.BadRequestError, match="dimensions is 2, and the vectors of this model have 3"):
        client.embeddings.create(model="service", input="a", dimensions=2)


@pytest.mark.parametrize("model", ["service", "tensors", "instances"])
def test_a_service_reranks(adapters: ServerProcess, scripted: Upstream, model: str) -> None:
    """Documents come best first with their scores, as many as are asked for."""
    body = {"model": model, "query": "q", "documents": ["a", "ccc", {"text": "bb"}], "top_n": 2}

    status, said = adapters.post("/v1/rerank", body)

    assert status == 200
    assert said["model"] == model
    assert said["results"] == [
        {"index": 1, "relevance_score": 0.3, "document": {"text": "ccc"}},
        {"index": 2, "relevance_score": 0.2, "document": {"text": "bb"}},
    ]


def test_documents_are_reranked_in_batches(adapters: ServerProcess, scripted: Upstream) -> None:
    """As many requests as the batches are, and one order over all of them."""
    documents = ["x" * length for length in (1, 5, 2, 9, 3, 7)]

    _, said = adapters.post("/v1/rerank", {"model": "tensors", "query": "q", "documents": documents})

    assert [len(asked.json()["inputs"][0]["data"]) for asked in scripted.calls] == [4, 2]
    assert [each["index"] for each in said["results"]] == [3, 5, 1, 4, 2, 0]


def test_a_key_in_the_response_of_the_target_is_masked(adapters: ServerProcess, scripted: Upstream) -> None:
    """Neither to the client nor to anybody else."""
    scripted.on("/v1/completions", error(401, "Incorrect API key provided: secret-key."))

    status, said = adapters.post("/v1/chat/completions", {"model": "chat", "messages": HELLO})

    assert status == 401
    assert said["error"]["message"] == "Incorrect API key provided: ***."


def test_tensors_have_the_form_of_the_protocol(
    client: openai.OpenAI, adapters: ServerProcess, scripted: Upstream
) -> None:
    """Names, shapes and types of the inputs, names of the outputs, and sampling as parameters."""
    client.completions.create(model="tensors", prompt="Hi", max_tokens=5, temperature=0.25, stop=["x"])
    adapters.post("/v1/rerank", {"model": "tensors", "query": "q", "documents": ["a", "b"]})
    text, pairs = (asked.json() for asked in scripted.calls)

    assert text == {
        "inputs": [{"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": ["Hi"]}],
        "outputs": [{"name": "text_output"}],
        "parameters": {"lora": "french", "temperature": 0.25, "max_tokens": 5},
    }
    assert pairs == {
        "inputs": [
            {"name": "query", "shape": [2, 1], "datatype": "BYTES", "data": ["q", "q"]},
            {"name": "document", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]},
        ]
    }


def test_instances_have_the_form_of_the_protocol(
    client: openai.OpenAI, adapters: ServerProcess, scripted: Upstream
) -> None:
    """A text alone is an instance itself, a pair is a mapping by name."""
    client.completions.create(model="instances", prompt="Hi")
    adapters.post("/v1/rerank", {"model": "instances", "query": "q", "documents": ["a"]})

    assert [asked.path for asked in scripted.calls] == ["/v1/models/instances:predict"] * 2
    assert [asked.json()["instances"] for asked in scripted.calls] == [["Hi"], [{"query": "q", "document": "a"}]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"nothing": 1}, "has nothing at '[0].generated_text'"),
        ([{"generated_text": 7}], "has a number at '[0].generated_text'"),
        ({"error": "the GPU is on fire"}, "the GPU is on fire"),
    ],
)
def test_an_invalid_response_is_a_gateway_error(
    client: openai.OpenAI, scripted: Upstream, answer: object, message: str
) -> None:
    """502 with what was found where."""
    scripted.on("/generate", json_answer(answer))

    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="service", prompt="Hi")

    assert caught.value.status_code == 502
    assert message in str(caught.value)


def test_a_refusal_of_a_service_reaches_the_client(client: openai.OpenAI, scripted: Upstream) -> None:
    """The status stays, and the text of any shape becomes the message."""
    scripted.on("/generate", json_answer({"detail": [{"msg": "inputs too long"}]}, 413))

    with pytest.raises(openai.APIStatusError, match="inputs too long") as caught:
        client.completions.create(model="service", prompt="Hi")

    assert caught.value.status_code == 413


def test_a_trace_is_forwarded_and_a_key_is_not(adapters: ServerProcess, scripted: Upstream) -> None:
    """The request id and the trace reach the target; the client's own key stays here."""
    headers = {"x-request-id": "abc-1", "traceparent": "00-1-2-03", "authorization": "Bearer mine", "x-odd": "1"}

    adapters.ask("/v1/completions", {"model": "service", "prompt": "Hi"}, headers)
    (asked,) = scripted.calls

    assert asked.header("x-request-id") == "abc-1"
    assert asked.header("traceparent") == "00-1-2-03"
    assert asked.header("authorization") is None
    assert asked.header("x-odd") is None


def test_an_operation_that_is_not_configured_is_refused(client: openai.OpenAI, scripted: Upstream) -> None:
    """What the config does not offer is a clear error."""
    with pytest.raises(openai.BadRequestError, match="does not support embedding"):
        client.embeddings.create(model="chat", input="a")


def test_a_client_that_leaves_ends_the_request(client: openai.OpenAI, scripted: Upstream) -> None:
    """The target sees the end of a stream that nobody reads any more."""

    def endless(asked: Asked) -> Any:
        chunk = event({"id": "c", "created": 1, "choices": [{"index": 0, "text": "x ", "finish_reason": None}]})
        pieces: list[bytes | float] = [chunk, 0.02]
        return stream(*(pieces * 2000))

    scripted.on("/v1/completions", endless)
    with client.chat.completions.create(model="chat", messages=HELLO, stream=True) as chunks:
        next(iter(chunks))
    asked = scripted.calls[0]

    wait_until(lambda: asked.has_left, 30)
    assert not asked.is_answered


GOOD = {"comments", "names and ids", "no [DONE]", "no blank line at the end", "CRLF", "no space after the colon"}
GOOD |= {"all in one chunk", "byte by byte", "gzip", "charset"}


@pytest.mark.parametrize("oddity", STREAMS)
def test_unusual_streams_of_targets_are_read(client: openai.OpenAI, scripted: Upstream, oddity: str) -> None:
    """What the wild has instead of a stream by the book is one for the client; what is broken is an error."""
    scripted.on("/v1/completions", STREAMS[oddity])

    if oddity in GOOD:
        chunks = list(client.chat.completions.create(model="plain", messages=HELLO, stream=True))
        assert _said(chunks) == "You said: Grüße, Дом, 你好"
    else:
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="plain", messages=HELLO, stream=True))
