"""
A client's mistake is a 4xx: every place where vLLM refuses a request while it reads it, and what pydantic refuses.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from litestar import post
from litestar.testing import RequestFactory
from openai import BaseModel as OpenAIModel
from pydantic import BaseModel, TypeAdapter, ValidationError

from appliance.api.error_responses import with_error_event
from appliance.core.errors import RequestError, UnavailableError
from appliance.core.model import Operation
from appliance.engines.vllm.errors import translate_errors
from appliance.engines.vllm.request_decoder import _validator, decode

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

USER = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "look"}}
OTHER = {"type": "function", "function": {"name": "other"}}
FUNCTION = {"type": "function", "name": "look", "parameters": {}}
TAG = {"type": "structural_tag"}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}

# The modules with the types of requests that we decode.
PROTOCOLS = (
    "vllm.entrypoints.generate.base.protocol",
    "vllm.entrypoints.openai.chat_completion.protocol",
    "vllm.entrypoints.openai.completion.protocol",
    "vllm.entrypoints.openai.responses.protocol",
    "vllm.entrypoints.pooling.base.protocol",
    "vllm.entrypoints.serve.tokenize.protocol",
)

TYPES = {
    "chat": "vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionRequest",
    "completion": "vllm.entrypoints.openai.completion.protocol.CompletionRequest",
    "response": "vllm.entrypoints.openai.responses.protocol.ResponsesRequest",
    "message": "vllm.entrypoints.anthropic.protocol.AnthropicMessagesRequest",
    "tokenize": "vllm.entrypoints.serve.tokenize.protocol.TokenizeRequest",
    "embed": "vllm.entrypoints.pooling.embed.protocol.EmbeddingRequest",
}

# What a request lacks of what each operation asks for.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "chat": {"messages": USER},
    "completion": {"prompt": "Hi"},
    "response": {"input": "Hi"},
    "message": {"messages": USER, "max_tokens": 5, "model": "m"},
    "tokenize": {"messages": USER},
    "embed": {"messages": USER, "model": "m"},
}


def _named(choice: object) -> dict[str, Any]:
    return {"tools": [TOOL], "tool_choice": choice}


# By function, and how the message begins: a request that is refused there.
SITES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "validate_cache_salt: Parameter 'cache_salt' must be a n": ("chat", {"cache_salt": ""}),
    "validate_cache_salt: Parameter 'cache_salt' must be at ": ("completion", {"cache_salt": "a/b"}),
    "validate_structural_tag_response_format: Invalid response_format structural": ("chat", {"response_format": TAG}),
    "validate_structural_tag_payload: Invalid   structural_tag specifica": (
        "chat",
        {"structured_outputs": {"structural_tag": ""}},
    ),
    "validate_structural_tag_payload: Invalid   structural_tag specifica #2": (
        "completion",
        {"structured_outputs": {"structural_tag": "x"}},
    ),
    "ChatCompletionRequest.validate_response_format: When response_format type is 'json": (
        "chat",
        {"response_format": {"type": "json_schema"}},
    ),
    "ChatCompletionRequest.validate_stream_options: Stream options can only be defined": (
        "chat",
        {"stream_options": {"include_usage": True}},
    ),
    "ChatCompletionRequest.check_logprobs: `logprob_token_ids` is not support": (
        "chat",
        {"logprob_token_ids": [1], "use_beam_search": True},
    ),
    "ChatCompletionRequest.check_logprobs: when using `logprob_token_ids`, `l": (
        "chat",
        {"logprob_token_ids": [1]},
    ),
    "ChatCompletionRequest.check_logprobs: ` ` must be an integer.": ("chat", {"top_logprobs": "many"}),
    "ChatCompletionRequest.check_logprobs: `prompt_logprobs` are not availabl": (
        "chat",
        {"prompt_logprobs": 1, "stream": True},
    ),
    "ChatCompletionRequest.check_logprobs: `prompt_logprobs` must be a positi": ("chat", {"prompt_logprobs": -2}),
    "ChatCompletionRequest.check_logprobs: `top_logprobs` must be a positive ": ("chat", {"top_logprobs": -2}),
    "ChatCompletionRequest.check_logprobs: when using `top_logprobs`, `logpro": ("chat", {"top_logprobs": 2}),
    "ChatCompletionRequest.check_structured_outputs_count: You can only use one kind of const": (
        "chat",
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    ),
    "ChatCompletionRequest.check_structured_outputs_count: You can only either use constraint": (
        "chat",
        {"structured_outputs": {"regex": "a"}, **_named({"type": "function", "function": {"name": "look"}})},
    ),
    "ChatCompletionRequest.check_tool_usage: `tools` must not be an empty array": ("chat", {"tools": []}),
    "ChatCompletionRequest.check_tool_usage: When using `tool_choice`, `tools` ": ("chat", {"tool_choice": "auto"}),
    "ChatCompletionRequest.check_tool_usage: Invalid value for `tool_choice`:  ": ("chat", _named("maybe")),
    "ChatCompletionRequest.check_tool_usage: Invalid value for `function`: ` ` ": ("chat", _named({})),
    "ChatCompletionRequest.check_tool_usage: Expected field `name` in `function": ("chat", _named({"function": {}})),
    "ChatCompletionRequest.check_tool_usage: Invalid `name` in `function`: ` ` ": (
        "chat",
        _named({"function": {"name": ""}}),
    ),
    "ChatCompletionRequest.check_tool_usage: The tool specified in `tool_choice": (
        "chat",
        _named({"type": "function", "function": {"name": "other"}}),
    ),
    "ChatCompletionRequest.check_generation_prompt: Cannot set both `continue_final_me": (
        "chat",
        {"continue_final_message": True, "add_generation_prompt": True},
    ),
    "CompletionRequest.validate_response_format: When response_format type is 'json": (
        "completion",
        {"response_format": {"type": "json_schema"}},
    ),
    "CompletionRequest.check_structured_outputs_count: You can only use one kind of const": (
        "completion",
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    ),
    "CompletionRequest.check_logprobs: `logprob_token_ids` is not support": (
        "completion",
        {"logprob_token_ids": [1], "use_beam_search": True},
    ),
    "CompletionRequest.check_logprobs: `echo` with `logprobs` is not supp": (
        "completion",
        {"echo": True, "logprobs": 1, "use_beam_search": True},
    ),
    "CompletionRequest.check_logprobs: `logprob_token_ids` is not support #2": (
        "completion",
        {"logprob_token_ids": [1], "echo": True, "max_tokens": 0},
    ),
    "CompletionRequest.check_logprobs: when using `logprob_token_ids`, `l": ("completion", {"logprob_token_ids": [1]}),
    "CompletionRequest.check_logprobs: ` ` must be an integer.": ("completion", {"logprobs": "many"}),
    "CompletionRequest.check_logprobs: `prompt_logprobs` are not availabl": (
        "completion",
        {"prompt_logprobs": 1, "stream": True},
    ),
    "CompletionRequest.check_logprobs: `prompt_logprobs` must be a positi": ("completion", {"prompt_logprobs": -2}),
    "CompletionRequest.check_logprobs: `logprobs` must be a positive valu": ("completion", {"logprobs": -2}),
    "CompletionRequest.validate_stream_options: Stream options can only be defined": (
        "completion",
        {"stream_options": {"include_usage": True}},
    ),
    "CompletionRequest.validate_prompt_and_prompt_embeds: Either prompt or prompt_embeds mus": (
        "completion",
        {"prompt": None},
    ),
    "CompletionRequest.validate_prompt_list_length: prompt list length   exceeds the m": (
        "completion",
        {"prompt": ["a"] * 5000},
    ),
    "CompletionRequest.validate_prompt_list_length: prompt_embeds list length   exceed": (
        "completion",
        {"prompt_embeds": ["a"] * 5000},
    ),
    "_resolve_named_tool_choice: Tool choice ' ' is ambiguous: it i": (
        "response",
        {
            "tools": [{"type": "namespace", "name": name, "tools": [{"name": "look"}]} for name in ("a", "b")],
            "tool_choice": {"type": "function", "name": "look"},
        },
    ),
    "_resolve_named_tool_choice: Tool choice 'function' not found i": (
        "response",
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "other"}},
    ),
    "ResponsesRequest.validate_background: background can only be used when `": (
        "response",
        {"background": True, "store": False},
    ),
    "ResponsesRequest.validate_prompt: prompt template is not supported": ("response", {"prompt": {"id": "x"}}),
    "ResponsesRequest.check_custom_tool_format: Custom tools with a grammar format": (
        "response",
        {"tools": [{"type": "custom", "name": "patch", "format": LARK}]},
    ),
    "ResponsesRequest.check_tool_usage: Tool choice 'required' must be spe": ("response", {"tool_choice": "required"}),
    "ResponsesRequest.check_tool_usage: Tool choice 'function' not found i": (
        "response",
        {"tool_choice": {"type": "function", "name": "look"}},
    ),
    "ResponsesRequest.check_tool_usage: Tool choice 'function' not found i #2": (
        "response",
        {"tools": [FUNCTION], "tool_choice": {"type": "function"}},
    ),
    "reject_removed_pooling_parameters: Parameter `normalize` was removed;": ("embed", {"normalize": True}),
    "ChatRequestOptionsMixin.check_generation_prompt: Cannot set both `continue_final_me": (
        "embed",
        {"continue_final_message": True, "add_generation_prompt": True},
    ),
    "TokenizeChatRequest.check_generation_prompt: Cannot set both `continue_final_me": (
        "tokenize",
        {"continue_final_message": True, "add_generation_prompt": True},
    ),
}

_BATCH = "requests to /v1/chat/completions/batch, which is no route of ours"

# By function, and how the message begins: why no body that is decoded is refused there.
UNREACHABLE: Mapping[str, str] = {
    "validate_request_mm_kwargs: Per-request mm_processor_kwargs ar": "raised while a chat is rendered",
    "validate_request_mm_kwargs: Per-request media_io_kwargs are di": "raised while a chat is rendered",
    "validate_structural_tag_response_format: Invalid response_format structural #2": (
        "what it translates is no ValueError, and what raises it says the same"
    ),
    "ResponsesRequest.extract_structured_outputs: Cannot specify both structured_out": (
        "raised while the parameters of sampling are made"
    ),
    "BatchChatCompletionRequest.check_batch_mode: Batch chat completions do not supp": _BATCH,
    "BatchChatCompletionRequest.check_batch_mode: when using `logprob_token_ids`, `l": _BATCH,
    "BatchChatCompletionRequest.check_batch_mode: Batch chat completions do not supp #2": _BATCH,
    "BatchChatCompletionRequest.check_batch_mode: Batch chat completions do not supp #3": _BATCH,
}


@dataclass(frozen=True)
class Site:
    """One ``raise VLLMValidationError``: the file, and its first and last line."""

    file: str
    first: int
    last: int


@cache
def sites() -> Mapping[str, Site]:
    """Every one in the modules of requests, from their source."""
    found: dict[str, Site] = {}
    for module in PROTOCOLS:
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        counts: Counter[str] = Counter()
        for function, node in _raises(ast.parse(Path(spec.origin).read_text()), ()):
            name = f"{function}: {_words(node)[:34]}"
            counts[name] += 1
            found[f"{name} #{counts[name]}" if counts[name] > 1 else name] = Site(
                spec.origin, node.lineno, node.end_lineno or node.lineno
            )
    return found


def _raises(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, ast.Raise]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and child.exc is not None and "VLLMValidationError(" in ast.unparse(child.exc):
            yield ".".join(names), child
        is_named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _raises(child, (*names, child.name) if is_named else names)  # type: ignore[attr-defined]  # named


def _words(node: ast.Raise) -> str:
    """The message's own text, a space for what is put in."""
    (message, *_) = node.exc.args if isinstance(node.exc, ast.Call) else (None,)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else " " for part in message.values)
    return str(message.value) if isinstance(message, ast.Constant) else ""


@cache
def adapter(operation: str) -> TypeAdapter[Any]:
    """What decodes the operation's requests."""
    module, _, name = TYPES[operation].rpartition(".")
    return TypeAdapter(getattr(importlib.import_module(module), name))


def body_of(operation: str, members: Mapping[str, Any]) -> bytes:
    """A whole request."""
    return json.dumps({**NEEDED[operation], **members}).encode()


def refused(operation: str, members: Mapping[str, Any]) -> RequestError:
    """The error that the request is answered with."""
    with pytest.raises(RequestError) as caught:
        decode(adapter(operation), body_of(operation, members))
    return caught.value


def test_every_place_has_its_request() -> None:
    """A new version of vLLM that refuses requests elsewhere is found here."""
    assert set(sites()) == set(SITES) | set(UNREACHABLE)
    assert len(sites()) > 50


@pytest.mark.parametrize("site", SITES)
async def test_what_vllm_refuses_is_refused_alike(site: str) -> None:
    """The request reaches that place, and has the status that vLLM's own server gives; the message names no class."""
    operation, members = SITES[site]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - looked at below
        adapter(operation).validate_json(body_of(operation, members))
    error = refused(operation, members)

    assert _raised_at(caught.value) == sites()[site]
    assert error.status == await _status_of_vllm(caught.value) == 400
    assert not {"VLLM", "--", "class "} & set(str(error).split())


def _raised_at(error: BaseException) -> Site:
    last: TracebackType | None = error.__traceback__
    assert last is not None
    while last.tb_next is not None:
        last = last.tb_next
    file, line = last.tb_frame.f_code.co_filename, last.tb_lineno
    (site,) = [each for each in sites().values() if each.file == file and each.first <= line <= each.last]
    return site


async def _status_of_vllm(error: Exception) -> int:
    """The status of its own handler of such errors."""
    from fastapi import FastAPI
    from starlette.requests import Request
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
    from vllm.exceptions import VLLMError

    app = FastAPI()
    app.state.args = type("Args", (), {"log_error_stack": False})
    init_exception_handler(app)
    handler: Any = app.exception_handlers[VLLMError]
    response = await handler(Request({"type": "http", "app": app}), error)
    status: int = response.status_code
    return status


ERROR = {"message": "no", "type": "invalid_request_error", "param": "top_k", "code": None}
PART = {"role": "user", "content": [{"type": "smell"}]}


@pytest.mark.parametrize(
    ("operation", "members", "param", "words"),
    [
        ("chat", {"messages": 5}, "messages", "must be an array"),
        ("chat", {"messages": ["x"]}, "messages[0]", "must be an object"),
        ("chat", {"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
        ("chat", {"messages": [{"role": 5, "content": "x"}]}, "messages[0].role", "must be a string"),
        (
            "chat",
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "must be a string or an array",
        ),
        ("chat", {"messages": [PART]}, "messages[0].content[0].type", "must be one of: 'text', 'image_url'"),
        (
            "chat",
            {"messages": [{"role": "tool", "tool_call_id": "1", "content": [{"type": "smell"}]}]},
            "messages[0].content[0].type",
            "must be one of: 'text'",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "is missing",
        ),
        ("chat", {"tools": 5}, "tools", "must be an array"),
        ("chat", {"tools": [1], "tool_choice": {"function": {"name": "a"}}}, "tools[0]", "must be an object"),
        ("chat", {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is missing"),
        ("chat", {"structured_outputs": 5}, "structured_outputs", "must be an object"),
        ("chat", {"structured_outputs": {}}, None, "none are specified"),
        ("chat", {"response_format": {"type": "x"}}, "response_format.type", "'json_schema', 'structural_tag'"),
        ("chat", {"temperature": "hot"}, "temperature", "must be a number"),
        ("chat", {"top_k": 2**70}, "top_k", "out of range"),
        ("chat", {"stop_token_ids": [2**70]}, "stop_token_ids", "out of range"),
        ("completion", {"prompt": ""}, "prompt", "must be provided"),
        ("completion", {"prompt": {"a": 1}}, "prompt", "must be an array or a string"),
        ("completion", {"vllm_xargs": {"a": [2**70]}}, "vllm_xargs", "out of range"),
        ("response", {"input": 5}, "input", "must be a string or an array"),
        ("response", {"input": [PART]}, "input[0].content[0].type", "'input_text', 'input_image'"),
        ("response", {"input": [{"type": "smell"}]}, "input[0].type", "'message', "),
        ("response", {"input": [{"type": "message", **PART, "role": "x"}]}, "input[0].role", "'user', 'assistant'"),
        (
            "response",
            {"input": [{"type": "web_search_call", "id": "w", "status": "x", "action": {"type": "search"}}]},
            "input[0].status",
            "must be one of: 'in_progress', 'searching'",
        ),
        (
            "response",
            {"input": [{"type": "local_shell_call", "id": "l", "call_id": "c", "status": "completed", "action": 5}]},
            "input[0].action",
            "must be an object",
        ),
        ("response", {"tools": 5}, "tools", "must be an array"),
        ("response", {"tools": [{"type": "smell"}]}, "tools[0].type", "'function', "),
        ("response", {"text": {"format": {"type": "json_schema"}}}, "text.format.name", "is missing"),
        ("message", {"messages": [PART]}, "messages[0].content[0].type", "'text', 'image'"),
        ("message", {"messages": [{"role": "x", "content": "x"}]}, "messages[0].role", "'user', 'assistant'"),
        ("message", {"tool_choice": {"type": "x"}}, "tool_choice.type", "'auto', 'any'"),
        ("tokenize", {"messages": 5}, "messages", "must be an array"),
        ("embed", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(
    operation: str, members: Mapping[str, Any], param: str | None, words: str
) -> None:
    """The message names the field as the client wrote it, and what it may be; no type of vLLM's or pydantic's."""
    error = refused(operation, members)

    assert (error.status, error.param) == (400, param)
    assert words in str(error)
    assert not any(word in str(error) for word in ("Param", "Request", "Input should", "function-", "pydantic"))


TURN = {"role": "assistant", "type": "message", "id": "m", "status": "completed"}


def test_an_empty_turn_of_the_assistant_is_left_out() -> None:
    """Agents send them back; vLLM would read the first of its texts."""
    items = [{**TURN, "content": []}, {"role": "user", "content": "Hi"}]

    request = decode(adapter("response"), body_of("response", {"input": items}))

    assert [item["role"] for item in request.input] == ["user"]


def test_an_input_without_a_text_is_refused() -> None:
    """There is nothing to go on from."""
    error = refused("response", {"input": [{**TURN, "content": []}]})

    assert (error.status, error.param) == (400, "input")


def test_vllm_runs_nothing_in_the_background() -> None:
    """It would keep the response where nobody can read it."""
    error = refused("response", {"background": True, "store": False})

    assert (error.status, error.param) == (400, "background")


def test_null_is_what_is_not_set() -> None:
    """Clients send it for all that they leave to the server, in messages too, where the type has no null."""
    message = {"role": "user", "content": "Hi", "name": None}
    chat = decode(adapter("chat"), body_of("chat", {"messages": [message], "n": None, "request_id": None}))
    response = decode(adapter("response"), body_of("response", {"background": None, "tools": None, "store": None}))

    assert chat.messages == [{"role": "user", "content": "Hi"}]
    assert (chat.n, response.background, response.tools, response.store) == (1, False, [], True)
    assert refused("chat", {"messages": None}).param == "messages"


def test_a_body_full_of_mistakes_is_refused_without_a_list_of_them() -> None:
    """A description of each of a hundred thousand values would take longer than all else about the request."""
    assert "most of its values" in str(refused("chat", {"logit_bias": dict.fromkeys(map(str, range(20_000)), "x")}))


@pytest.mark.parametrize("operation", ["chat", "response", "message"])
@pytest.mark.parametrize("item", [{}, [[]], 5])
def test_only_the_first_faulty_item_of_a_list_is_described(operation: str, item: object) -> None:
    """
    An item may be of dozens of types, and what is wrong with each of thousands takes minutes and gigabytes to say.
    """
    field = "input" if operation == "response" else "messages"
    body = body_of(operation, {field: [item] * 4000})

    error = refused(operation, {field: [item] * 4000})
    with pytest.raises(ValidationError) as caught:
        _validator(adapter(operation)).validate_json(body)

    assert (error.param or "").startswith(f"{field}[0]")
    assert caught.value.error_count() < 1000


def test_only_the_first_faulty_part_of_an_item_is_described() -> None:
    """The parts of a message are as many types as the items of a list; types that were used before are no exception."""
    for kind in _kinds(OpenAIModel):
        kind.model_rebuild()
    body = body_of("response", {"input": [{"role": "user", "content": [{}] * 20_000}]})

    with pytest.raises(ValidationError) as caught:
        _validator(adapter("response")).validate_json(body)

    assert caught.value.error_count() < 1000


def _kinds(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def _raise(error: Exception) -> None:
    with translate_errors():
        raise error


def test_what_the_engine_raises_about_a_request_is_the_clients() -> None:
    """vLLM wraps the errors of one request; what a client can do nothing with is left out of the messages."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.exceptions import EngineGenerateError

    option = "Unable. Start the server with --trust-request-mm-kwargs, or set VLLM_THIS."
    causes: list[tuple[Exception, str]] = [
        (ValueError("the regex has a NUL"), "the regex has a NUL"),
        (OverflowError("int too big to convert"), "or a size that the engine cannot take"),
        (VLLMValidationError(option, parameter="media_io_kwargs"), "Unable."),
        (VLLMValidationError("You must set `--enable-prompt-embeds`.", parameter="prompt_embeds"), "prompt_embeds is"),
        (NotImplementedError(), "does not support"),
    ]
    for cause, words in causes:
        error = EngineGenerateError()
        error.__cause__ = cause
        with pytest.raises(RequestError, match=words.replace(".", r"\.")) as caught:
            _raise(error)
        assert caught.value.status == 400
        assert "--" not in str(caught.value)
    with pytest.raises(EngineGenerateError):
        _raise(EngineGenerateError())


def test_an_engine_with_too_much_to_do_is_asked_again() -> None:
    """vLLM's own limits are 503 with `Retry-After`."""
    from vllm.exceptions import QueueOverflowError

    with pytest.raises(UnavailableError) as caught:
        _raise(QueueOverflowError())

    assert caught.value.retry_after == 1


@pytest.mark.parametrize(
    ("path", "operation", "name", "event"),
    [
        (
            "/v1/responses",
            Operation.RESPONSE,
            "event: error\n",
            {
                "type": "error",
                "code": "invalid_request_error",
                "message": "no",
                "param": "top_k",
                "sequence_number": 5,
            },
        ),
        (
            "/v1/messages",
            Operation.MESSAGE,
            "event: error\n",
            {"type": "error", "error": ERROR},
        ),
        (
            "/v1/chat/completions",
            Operation.CHAT_COMPLETION,
            "",
            {"error": ERROR},
        ),
    ],
)
async def test_an_error_in_a_stream_has_the_shape_of_its_protocol(
    path: str, operation: Operation, name: str, event: Mapping[str, Any]
) -> None:
    """It comes after what was sent, and numbers itself where the protocol numbers events."""

    async def broken() -> Any:
        yield b'data: {"sequence_number":4}\n\n'
        raise RequestError("no", param="top_k")

    @post(path, name=operation)
    async def route() -> None:
        raise AssertionError("its errors are all that is needed")

    _, last = [each async for each in with_error_event(RequestFactory().post(path, route_handler=route), broken())]

    head, _, data = last.decode().partition("data: ")
    assert (head, json.loads(data)) == (name, event)


def _told(message: str, parameter: str | None, operation: str, members: Mapping[str, Any]) -> RequestError:
    """What a client is told of an error of vLLM's that this request made it raise."""
    from vllm.exceptions import VLLMValidationError

    request = decode(adapter(operation), body_of(operation, members))
    with pytest.raises(RequestError) as caught, translate_errors(request=request):
        raise VLLMValidationError(message, parameter=parameter)
    return caught.value


@pytest.mark.parametrize(
    ("message", "parameter", "operation", "members", "param"),
    [
        ("min_p must be in [0, 1], got 5.", None, "chat", {}, "min_p"),
        ("n must be 1 when using greedy sampling", None, "completion", {}, "n"),
        ("It is too long.", "input_text", "chat", {}, "messages"),
        ("It is too long.", "input_tokens", "completion", {}, "prompt"),
        ("It is too long.", "input_text", "response", {}, "input"),
        ("Requested sample logprobs of 21", "logprobs", "chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("Too large", "response_format", "chat", {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ("Too large", "response_format", "response", {"text": {"format": {"type": "json_object"}}}, "text.format"),
        ('"auto" tool choice requires --tool-call-parser to be set', None, "chat", {}, "tool_choice"),
        ("Nothing of the request is named", None, "chat", {}, None),
    ],
)
def test_the_field_at_fault_is_one_of_the_request(
    message: str, parameter: str | None, operation: str, members: Mapping[str, Any], param: str | None
) -> None:
    """vLLM leaves it out, or names one of its own parameters."""
    assert _told(message, parameter, operation, members).param == param


def test_of_two_constraints_the_field_is_named() -> None:
    """The message speaks of several."""
    assert refused("chat", {"structured_outputs": {"regex": "a", "choice": ["a"]}}).param == "structured_outputs"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "tool_choice=required requires --tool-call-parser to be set",
            "the config of this model sets no tool_call_parser",
        ),
        (
            "jinja2.environment.Template.render() got multiple values for keyword argument 'tools'",
            "chat_template_kwargs must not have tools",
        ),
        ("As of transformers v4.44, default chat template is no longer allowed, so", "The model has no chat template"),
    ],
)
def test_what_only_an_operator_understands_is_said_otherwise(message: str, words: str) -> None:
    """No classes, no versions of libraries, no options of another server."""
    error = _told(message, None, "chat", {})

    assert words in str(error)
    assert not any(word in str(error) for word in ("jinja2", "transformers", "--"))
