"""Chat over a model that completes prompts, from Python: what the class `adapter` of a file does over completions."""

# ruff: noqa: ARG002 - a method takes what the ones that override it are given

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.adapters.chat_request import ChatRequestBuilder, Prompted
from appliance.adapters.chat_template import chat_template as template_of
from appliance.adapters.completions import CompletionsAdapter
from appliance.adapters.target import PeerTarget
from appliance.config.adapters import CompletionsConfig
from appliance.core.errors import ApplianceError, RequestError
from appliance.core.model import SINGLE_FRONT_END, Model, ModelRequest, ModelResponse, Operation
from appliance.python_api.arguments import checked
from appliance.python_api.client import body_of, chunks, made
from appliance.python_api.invoke import called
from appliance.python_api.model_adapter import PythonModelAdapter, bridged
from appliance.python_api.openai_model import Context, OpenAIGenerativeModel, OpenAIModel, RawRequest
from appliance.python_api.request_types import ChatCompletionRequest
from appliance.python_api.response_types import ChatCompletion, ChatCompletionChunk

# Stands where a program has no template, and is never rendered.
_NO_TEMPLATE = "{# none #}"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the text to continue, and the role of whoever continues it."""

    prompt: str
    response_role: str = "assistant"


class OpenAIChatAdapterModel(OpenAIGenerativeModel):
    """Chats by way of completions: those of an underlying model, or of its own class's `create_completion`."""

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
            ApplianceError: one of them is wrong, or nothing completes.
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
        self._config = checked(CompletionsConfig, keys, type(self).__name__)
        compiled = template_of(self._config, None)
        self._chat = None if chat_template is None or compiled is None else ChatRequestBuilder(compiled, tuple(stop))
        self.backing = None if underlying_model is None else bridged(underlying_model)
        if Operation.COMPLETION not in bridged(self).operations:
            raise ApplianceError(f"{type(self).__name__}: nothing completes; give an underlying_model that does")
        if self._chat is None and type(self).apply_chat_template is OpenAIChatAdapterModel.apply_chat_template:
            raise ApplianceError(
                f"{type(self).__name__}: has no chat template; give chat_template, or override apply_chat_template"
            )

    def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:
        """The prompt of a conversation; it may be overridden, asynchronously too.

        Raises:
            RequestError: the template refuses the request.
        """
        if self._chat is None:
            raise RequestError("This model has no chat template")
        return ChatPrompt(self._chat.prompt(body_of(request, self.name)), self._config.response_role)

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Context | None = None
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk]:
        """The conversation continued; every field of the request goes along."""
        prompt = await called(self.apply_chat_template, request)
        config = self._config.model_copy(update={"response_role": prompt.response_role})
        chat = Prompted(prompt.prompt, config.stop)
        over = CompletionsAdapter(request.model or self.name, config, PeerTarget(self.name, _Completing(self)), chat)
        headers = {} if raw_request is None else dict(raw_request.headers)
        said = await over.chat(body_of(request, self.name), headers)
        return made(ChatCompletion, said) if isinstance(said, dict) else chunks(said, ChatCompletionChunk)


class _Completing:
    """Has an adapter's completions answered, by whatever name."""

    front_end = SINGLE_FRONT_END

    def __init__(self, adapter: OpenAIChatAdapterModel) -> None:
        self._model: Model = PythonModelAdapter(adapter)

    def operations(self, _name: str) -> frozenset[Operation]:
        return self._model.operations

    def check(self, _name: str) -> None:
        """The adapter's own health says it."""

    async def handle(self, _name: str, call: ModelRequest) -> ModelResponse:
        return await self._model.handle(call)
