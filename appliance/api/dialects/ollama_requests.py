"""Requests of Ollama's API, and their translation to OpenAI requests.

Source: https://docs.ollama.com/api, and https://github.com/ollama/ollama, api/types.go, docs/modelfile.mdx for options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from appliance.config.models import GenerativeConfig
from appliance.core.errors import RequestError
from appliance.core.openai_types import Json
from appliance.models.model_status import ModelStatus

# Options by the names of the fields that have their meaning. Open WebUI adds `logit_bias` and `reasoning_effort`, which
# Ollama ignores.
_FIELDS: Mapping[str, str] = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    **{name: name for name in ("presence_penalty", "frequency_penalty", "logit_bias", "reasoning_effort")},
    "repeat_penalty": "repetition_penalty",
    "num_predict": "max_tokens",
}

# They change no token: the model is loaded as the config says, a text that is too long is an error, and Ollama itself
# ignores what only its earlier versions had (mirostat, tfs_z).
_WITHOUT_EFFECT = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "draft_num_predict", "numa", "low_vram"}
    | {"f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only", "penalize_newline"}
    | {"mirostat", "mirostat_tau", "mirostat_eta", "tfs_z"}
)

# Engines here do not have them; these values turn them off.
_OFF: Mapping[str, float] = {"typical_p": 1, "repeat_last_n": -1}

# What `repeat_last_n` limits to the last tokens, and the values without effect.
_PENALTIES: Mapping[str, float] = {"repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}

# The beginning of images in base64.
_IMAGE_TYPES = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}


class FunctionCall(msgspec.Struct):
    """The function of a tool call."""

    name: str
    arguments: Json = {}


class ToolCall(msgspec.Struct):
    """A tool call of the model."""

    function: FunctionCall
    id: str | None = None


class Message(msgspec.Struct):
    """A message of a conversation; images are in base64."""

    role: str
    content: str | None = ""
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    thinking: str | None = None


class _Request(msgspec.Struct, kw_only=True):
    model: str
    options: Json | None = None
    keep_alive: str | float | None = None
    """Without effect, except 0, which asks to unload the model."""


class _Generation(_Request, kw_only=True):
    stream: bool | None = None
    format: str | Json | None = None
    """`json`, or a JSON schema."""
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0)] | None = None

    @property
    def is_streamed(self) -> bool:
        """Whether the response is a stream; it is one unless the client says no."""
        return self.stream is not False

    def fields(self, status: ModelStatus) -> Json:
        """Return the fields of the OpenAI request that chats and prompts share."""
        fields = {**options(self.options), **_format(self.format), **_thinking(self.think, status)}
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.is_streamed:
            fields["stream_options"] = {"include_usage": True}
        return fields


class ChatRequest(_Generation, kw_only=True):
    """A request of `/api/chat`."""

    messages: list[Message] = []
    tools: list[Json] | None = None

    def openai(self, status: ModelStatus) -> Json:
        """Return the body of the chat completion request."""
        tools = {"tools": self.tools} if self.tools else {}
        return {"messages": _messages(self.messages), **tools, **self.fields(status)}


class GenerateRequest(_Generation, kw_only=True):
    """A request of `/api/generate`: with `raw` or a suffix a completion, else a chat of one message."""

    prompt: str | None = ""
    system: str | None = None
    raw: bool | None = None
    images: list[str] | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None

    @property
    def is_completion(self) -> bool:
        """Whether no chat template is applied."""
        return bool(self.raw or self.suffix)

    def openai(self, status: ModelStatus) -> Json:
        """Return the body of the completion request, or of the chat completion request."""
        for name, remedy in (
            ("template", "the key chat_template of the model in the config has it, or send a prompt with raw"),
            ("context", "send the conversation to /api/chat"),
        ):
            if getattr(self, name):
                raise RequestError(f"{name} is not supported; {remedy}", param=name)
        if self.is_completion:
            if self.images or self.system or self.logprobs:
                name = "raw" if self.raw else "suffix"
                raise RequestError(f"{name} takes no images, system and logprobs; leave them out", param=name)
            fields = self.fields(status)
            # Only chat templates know it.
            fields.pop("reasoning_effort", None)
            suffix = {"suffix": self.suffix} if self.suffix else {}
            return {"prompt": self.prompt or "", **suffix, **fields}
        system = [Message("system", self.system)] if self.system else []
        messages = [*system, Message("user", self.prompt, self.images)]
        return {"messages": _messages(messages), **self.fields(status)}


class EmbedRequest(_Request, kw_only=True):
    """A request of `/api/embed`."""

    input: str | list[str]
    truncate: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0)] | None = None


class EmbeddingsRequest(_Request, kw_only=True):
    """A request of the older `/api/embeddings`."""

    prompt: str


class NameRequest(msgspec.Struct):
    """A request about a model."""

    model: str = ""
    name: str = ""
    """Older clients send this one."""


def options(given: Json | None) -> Json:
    """Return the fields for some options; one that would change the text, and cannot be had, is refused."""
    fields: Json = {}
    given = {name: value for name, value in (given or {}).items() if value is not None and name not in _WITHOUT_EFFECT}
    if all(given.get(name, neutral) == neutral for name, neutral in _PENALTIES.items()):
        given.pop("repeat_last_n", None)
    for name, value in given.items():
        if name in _OFF:
            if value != _OFF[name]:
                raise RequestError(
                    f"options.{name} is {json.dumps(value)[:80]}, which is not supported; leave it out", param="options"
                )
        elif name not in _FIELDS:
            known = ", ".join(sorted({*_FIELDS, *_OFF, *_WITHOUT_EFFECT}))
            raise RequestError(f"options.{name[:80]} does not exist; there are: {known}", param="options")
        elif name == "logit_bias" and isinstance(value, str):
            fields |= _logit_bias(value)
        elif value != "" and (name != "num_predict" or not isinstance(value, int) or value >= 0):
            # A negative number of tokens is as many as there is room for.
            fields[_FIELDS[name]] = value
    return fields


def _logit_bias(text: str) -> Json:
    """Return the field for Open WebUI's form: `5432:100, 413:-100`."""
    pairs = [pair.partition(":") for pair in text.split(",") if pair.strip()]
    try:
        bias = {token.strip(): float(value) for token, _, value in pairs}
    except ValueError:
        raise RequestError(
            f"options.logit_bias is {text[:80]!r}; it must be an object, or pairs like '5432:100, 413:-100'",
            param="options",
        ) from None
    return {"logit_bias": bias} if bias else {}


def _format(given: str | Json | None) -> Json:
    if isinstance(given, dict):
        schema = {"name": "format", "schema": given}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if given not in {None, "", "json"}:
        raise RequestError(f"format is {str(given)[:80]!r}; it must be json, or a JSON schema", param="format")
    return {"response_format": {"type": "json_object"}} if given else {}


def _thinking(think: bool | str | None, status: ModelStatus) -> Json:
    if think is None:
        return {}
    config = status.config
    if think and isinstance(config, GenerativeConfig) and config.reasoning_parser is None:
        raise RequestError(
            "This model does not separate its thinking; set reasoning_parser in the config, or leave think out",
            param="think",
        )
    effort = {"reasoning_effort": think} if isinstance(think, str) else {}
    return {"chat_template_kwargs": {"enable_thinking": bool(think)}, **effort}


def _messages(messages: Sequence[Message]) -> list[Json]:
    """Return OpenAI's messages; tool calls get ids if they have none, and results those of their calls, in order."""
    result, pending = list[Json](), list[tuple[str, str]]()
    for number, message in enumerate(messages):
        told: Json = {"role": message.role.lower(), "content": _content(message)}
        if message.thinking:
            told["reasoning"] = message.thinking
        calls = list[Json]()
        for index, call in enumerate(message.tool_calls or ()):
            call_id, function = call.id or f"call_{number}_{index}", call.function
            pending.append((function.name, call_id))
            arguments = msgspec.json.encode(function.arguments).decode()
            calls.append(
                {"id": call_id, "type": "function", "function": {"name": function.name, "arguments": arguments}}
            )
        if calls:
            told["tool_calls"] = calls
        if told["role"] == "tool":
            told["tool_call_id"] = message.tool_call_id or _call_of(message, pending)
        result.append(told)
    return result


def _call_of(message: Message, pending: list[tuple[str, str]]) -> str:
    """Return the id of the first call that a result can belong to, and forget the call."""
    found = next((each for each in pending if message.tool_name in {None, "", each[0]}), None)
    if found is None:
        raise RequestError("A message of role tool follows no call of its tool; send the model's message too")
    pending.remove(found)
    return found[1]


def _content(message: Message) -> str | list[Json]:
    text = message.content or ""
    if not message.images:
        return text
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in message.images]
    return [*([{"type": "text", "text": text}] if text else []), *parts]


def _data_uri(image: str) -> str:
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{image}"
