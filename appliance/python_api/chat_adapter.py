"""Chat over a model that completes prompts, from Python: what the class `adapter` of a file does over completions."""

# ruff: noqa: ARG002 - methods have the parameters of those that override them

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.adapters.chat_request import ChatRequestBuilder, completion_request
from appliance.adapters.completions import CompletionsOperations, PeerTarget
from appliance.adapters.templates import load_chat_template
from appliance.config.adapters import CompletionsConfig
from appliance.core.errors import ApplianceError, RequestError
from appliance.core.model import SINGLE_FRONT_END, ModelRequest, ModelResponse, Operation
from appliance.python_api.base_model import config_from_keywords
from appliance.python_api.client import request_body, to_objects
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.python_api.openai_model import Context, OpenAIGenerativeModel, OpenAIModel, RawRequest
from appliance.python_api.types import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from appliance.python_api.user_code import call_method

# Satisfies the config if a program has no template; never rendered.
_NO_TEMPLATE = "{# none #}"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the text to continue, and the role of the message that continues it."""

    prompt: str
    response_role: str = "assistant"


class OpenAIChatAdapterModel(OpenAIGenerativeModel):
    """Chat by way of completions: those of an underlying model, or of its own class's `create_completion`."""

    def __init__(
        self,
        name: str,
        underlying_model: OpenAIModel | None = None,
        *,
        chat_template: str | None = None,
        response_role: str = "assistant",
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        tool_calls: Mapping[str, Any] | None = None,  # Any: checked like the file's
    ) -> None:
        """
        The keywords are the keys of an adapter's `protocol`; see `appliance schema adapter`. Without a `chat_template`
        override `apply_chat_template`.

        Raises:
            ApplianceError: one of them is wrong, or there is nothing that completes prompts.
        """
        super().__init__(name)
        keys = {
            "kind": "completions",
            "chat_template": _NO_TEMPLATE if chat_template is None else chat_template,
            "response_role": response_role,
            "stop": tuple(stop),
            "max_tokens": max_tokens,
            "tool_calls": tool_calls,
        }
        self._config = config_from_keywords(CompletionsConfig, keys, type(self).__name__)
        template = load_chat_template(self._config.chat_template, None)
        self._chat = None if chat_template is None or template is None else ChatRequestBuilder(template, tuple(stop))
        self.backing = None if underlying_model is None else PythonModelAdapter(underlying_model)
        if Operation.COMPLETION not in PythonModelAdapter(self).operations:
            raise ApplianceError(f"{type(self).__name__}: nothing completes; give an underlying_model that does")
        if self._chat is None and type(self).apply_chat_template is OpenAIChatAdapterModel.apply_chat_template:
            raise ApplianceError(
                f"{type(self).__name__}: has no chat template; give chat_template, or override apply_chat_template"
            )

    def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:
        """Return the prompt of a conversation; may be overridden, also by an asynchronous method.

        Raises:
            RequestError: the template rejects the request.
        """
        if self._chat is None:
            raise RequestError("This model has no chat template")
        return ChatPrompt(self._chat.prompt(request_body(request, self.name)), self._config.response_role)

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk]:
        """Continue the conversation; every field of the request is passed on."""
        prompt = await call_method(self.apply_chat_template, request)
        config = self._config.model_copy(update={"response_role": prompt.response_role})
        target = PeerTarget(self.name, _OwnCompletions(self))
        operations = CompletionsOperations(request.model or self.name, config, target)
        body = request_body(request, self.name)
        headers = {} if raw_request is None else dict(raw_request.headers)
        response = await operations.chat(body, completion_request(body, prompt.prompt, config.stop), headers)
        return to_objects(response, ChatCompletion, ChatCompletionChunk)


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
