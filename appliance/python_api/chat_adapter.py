"""Chat over a model that completes prompts, from Python: what the class `adapter` of a file does over completions."""

# ruff: noqa: ARG002 - methods have the parameters of those that override them

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.adapters.chat_request import ChatRequestBuilder, completion_request
from appliance.adapters.completions import CompletionsOperations, PeerTarget
from appliance.adapters.templates import load_chat_template
from appliance.config.adapters import CompletionsConfig
from appliance.core.errors import ApplianceError, RequestError
from appliance.core.model import SINGLE_FRONT_END, ModelRequest, ModelResponse, Operation
from appliance.python_api import tensor_model
from appliance.python_api.base_model import BasePythonModel, config_from_keywords
from appliance.python_api.client import request_body, to_objects
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.python_api.openai_model import Context, OpenAIGenerativeModel
from appliance.python_api.raw_request import RawRequest
from appliance.python_api.text_model import TextModel
from appliance.python_api.types import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from appliance.python_api.user_code import call_method

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""The chat template for a model that has none: a line ``ROLE: TEXT`` for each message, and ``assistant:``."""


@dataclass(slots=True)
class ChatPrompt:
    """A conversation as the text to continue, and the role of the message that continues it."""

    response_role: str = "assistant"
    prompt: str = None  # type: ignore[assignment]  # required, see __post_init__

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise TypeError("ChatPrompt has no prompt; write it as ChatPrompt(prompt=TEXT), or ChatPrompt(ROLE, TEXT)")


class OpenAIChatAdapterModel(OpenAIGenerativeModel):
    """Chat by way of completions: those of an underlying model, or of its own class's `create_completion`."""

    def __init__(
        self,
        name: str,
        underlying_model: object = None,
        *,
        chat_template: str | None = None,
        response_role: str = "assistant",
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        tool_calls: Mapping[str, Any] | None = None,  # Any: checked like the file's
    ) -> None:
        """
        `underlying_model` is a model with `create_completion` or `predict`, an object with `generate`, or a function;
        see `TextModel` for what they get. The keywords are the keys of an adapter's `protocol`; see `appliance schema
        adapter`. Without a `chat_template` the conversation is rendered by `apply_chat_template` of the underlying
        model, else with its attribute `chat_template` or that of its `tokenizer`, else with the template in its
        `model_dir`, else with `PLAIN_TEMPLATE`.

        Raises:
            ApplianceError: one of them is wrong, or there is nothing that completes prompts.
        """
        super().__init__(name)
        self._source, self._tokens = chat_template, dict[str, str]()
        if chat_template is None:
            self._source, self._tokens = _template_of(underlying_model)
        keys = {
            "kind": "completions",
            "chat_template": self._source or PLAIN_TEMPLATE,
            "response_role": response_role,
            "stop": tuple(stop),
            "max_tokens": max_tokens,
            "tool_calls": tool_calls,
        }
        self._config = config_from_keywords(CompletionsConfig, keys, type(self).__name__)
        self._apply = None if chat_template else getattr(underlying_model, "apply_chat_template", None)
        self._underlying_model = underlying_model
        self.backing = None if underlying_model is None else PythonModelAdapter(_completing(name, underlying_model))
        self._chat = self._load_template(None)
        if Operation.COMPLETION not in PythonModelAdapter(self).operations:
            raise ApplianceError(f"{type(self).__name__}: nothing completes; give an underlying_model that does")

    async def _run_load(self) -> bool:
        """Load the model, and then the chat template among its files, unless there is another one."""
        is_loaded = await super()._run_load()
        directory = getattr(self._underlying_model, "model_dir", None) or self.model_dir
        if is_loaded and self._source is None and directory is not None:
            self._chat = self._load_template(Path(directory))
        return is_loaded

    def _load_template(self, directory: Path | None) -> ChatRequestBuilder | None:
        source = None if directory else self._config.chat_template
        template = load_chat_template(source, directory, default=PLAIN_TEMPLATE, tokens=self._tokens)
        return None if template is None else ChatRequestBuilder(template, self._config.stop)

    def apply_chat_template(self, request: ChatCompletionRequest) -> Any:  # Any: a ChatPrompt; may be asynchronous
        """Return the prompt of a conversation, a `ChatPrompt`; may be overridden, also by an asynchronous method.

        Raises:
            RequestError: the template rejects the request.
        """
        if self._apply is not None:
            return self._apply(request)
        if self._chat is None:
            raise RequestError("This model has no chat template")
        return ChatPrompt(self._config.response_role, self._chat.prompt(request_body(request, self.name)))

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk]:
        """Continue the conversation; every field of the request is passed on."""
        prompt = await call_method(self.apply_chat_template, request)
        if isinstance(prompt, str):
            prompt = ChatPrompt(self._config.response_role, prompt)
        config = self._config.model_copy(update={"response_role": prompt.response_role})
        target = PeerTarget(self.name, _OwnCompletions(self))
        operations = CompletionsOperations(request.model or self.name, config, target)
        body = request_body(request, self.name)
        headers = {} if raw_request is None else dict(raw_request.headers)
        response = await operations.chat(body, completion_request(body, prompt.prompt, config.stop), headers)
        return to_objects(response, ChatCompletion, ChatCompletionChunk)


def _template_of(model: object) -> tuple[str | None, dict[str, str]]:
    """Return the chat template that a model or its tokenizer has, or None, and the special tokens it writes out."""
    for owner in (model, getattr(model, "tokenizer", None)):
        template, tokens = getattr(owner, "chat_template", None), getattr(owner, "special_tokens_map", None)
        if isinstance(template, str):
            return template, dict(tokens) if isinstance(tokens, Mapping) else {}
    return None, {}


def _completing(name: str, model: object) -> BasePythonModel:
    """Return a model that completes prompts."""
    is_completing = isinstance(model, BasePythonModel) and Operation.COMPLETION in PythonModelAdapter(model).operations
    if isinstance(model, BasePythonModel) and (is_completing or not isinstance(model, tensor_model.Model)):
        return model
    return TextModel(name, model)


class _OwnCompletions:
    """The completions of an adapter as `Peers`, under any name."""

    front_end = SINGLE_FRONT_END

    def __init__(self, adapter: OpenAIChatAdapterModel) -> None:
        self._model = PythonModelAdapter(adapter)

    def operations(self, _name: str) -> frozenset[Operation]:
        return self._model.operations

    def check(self, _name: str) -> None:
        """Never fails: the adapter's own health covers it."""

    async def handle(self, _name: str, request: ModelRequest) -> ModelResponse:
        return await self._model.handle(request)
