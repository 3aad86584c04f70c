"""What the kinds of protocol share, and the section of the kind `completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from appliance.config.base import BaseConfig
from appliance.config.storage import StorageConfig
from appliance.core.model import Operation

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]

OPERATIONS: Mapping[str, Operation] = {
    "chat": Operation.CHAT_COMPLETION,
    "completions": Operation.COMPLETION,
    "embeddings": Operation.EMBEDDING,
    "rerank": Operation.RERANK,
}
"""
The operations that can be adapted, by the keys that offer them.
"""


class ToolCallsConfig(BaseConfig):
    """How a model writes a call of a tool: JSON with `name` and `arguments` or `parameters`, or a list of such."""

    begin: Text = "<tool_call>"
    """What stands before the JSON."""

    end: Text | None = "</tool_call>"
    """What stands after it; null is the end of the answer."""


class ChatConfig(BaseConfig):
    """How a conversation becomes the text of one prompt."""

    chat_template: Text | None = None
    """Jinja template for chat, inline or the path of a file; unset is the tokenizer's."""

    tokenizer: StorageConfig | None = None
    """
    Where the tokenizer's chat template and special tokens come from: a directory with `tokenizer_config.json`, or that
    file, such as `hf://OWNER/NAME/tokenizer_config.json`; of a whole repository the weights are fetched too.
    """

    response_role: Text = "assistant"
    """The role that answers have."""

    stop: tuple[Text, ...] = ()
    """Texts that end an answer, besides those the client names, such as `<|im_end|>`."""

    tool_calls: ToolCallsConfig | None = None
    """How the model writes tool calls, `{}` for `<tool_call>` marks; unset leaves them in the text."""


class RequiredChatConfig(ChatConfig):
    """The same where a conversation must become a prompt."""

    @model_validator(mode="after")
    def _has_template(self) -> Self:
        if self.chat_template is None and self.tokenizer is None:
            raise ValueError("has no chat template; must have chat_template, or a tokenizer that has one")
        return self


class CompletionsConfig(RequiredChatConfig):
    """The target completes prompts, as OpenAI's `/v1/completions`, and does not chat."""

    kind: Literal["completions"]
    """What the target speaks."""

    max_tokens: Count | None = None
    """
    Most tokens of an answer when the client names no limit; unset is all that the context has room for where the target
    is a model of this file that can count, and 1024 elsewhere.
    """

    defaults: dict[str, JsonValue] = Field(default_factory=dict)
    """
    Fields of every request to the target that the client does not set, such as `add_special_tokens: false`; null takes
    out one that is sent otherwise, as that one is to a model of this file.
    """

    @property
    def templated(self) -> ChatConfig | None:
        """The part that has a chat template."""
        return self

    @property
    def operations(self) -> frozenset[Operation]:
        """What the adapter can be asked."""
        return frozenset({Operation.CHAT_COMPLETION, Operation.COMPLETION})


class OfferingConfig(BaseConfig):
    """A kind of protocol that offers each operation there is a key for."""

    @model_validator(mode="after")
    def _offers_something(self) -> Self:
        if not self.operations:
            raise ValueError(f"offers nothing; must have one or more of {', '.join(OPERATIONS)}")
        return self

    @property
    def operations(self) -> frozenset[Operation]:
        """What the adapter can be asked."""
        return frozenset(each for key, each in OPERATIONS.items() if getattr(self, key) is not None)

    @property
    def templated(self) -> ChatConfig | None:
        """The part that may have a chat template."""
        chat: ChatConfig | None = getattr(self, "chat", None)
        return chat
