"""Config of the adapter class: the protocols `completions`, `oip` and `http` of its target."""

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
"""The operations that can be adapted, by the keys that offer them."""


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


class OperationsConfig(BaseConfig):
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


class OipTextConfig(BaseConfig):
    """Text in, text out."""

    input: Text | None = None
    """Name of the tensor that takes the prompt; unset is `text_input`, and with v1 the prompt itself is an instance."""

    output: Text | None = None
    """Name of the tensor that holds the answer; unset is `text_output`, and with v1 a prediction is the answer."""

    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Parameters of every request; the client's sampling fields go over them."""


class OipChatConfig(OipTextConfig, RequiredChatConfig):
    """Messages in, through a chat template, text out."""


class OipEmbeddingsConfig(BaseConfig):
    """Texts in, vectors out."""

    input: Text | None = None
    """Name of the tensor that takes the texts; unset is `text_input`, and with v1 each text itself is an instance."""

    output: Text | None = None
    """Name of the tensor that holds the vectors, of shape [texts, dimensions]; unset is the only one there is."""


class OipRerankConfig(BaseConfig):
    """Pairs of a query and a document in, scores out."""

    query: Text = "query"
    """Name of the tensor that takes the query, once for each document."""

    document: Text = "document"
    """Name of the tensor that takes the documents."""

    output: Text | None = None
    """Name of the tensor that holds one score for each document; unset is the only one there is."""


class OipConfig(OperationsConfig):
    """The target speaks the Open Inference Protocol at `target.url`."""

    kind: Literal["oip"]
    """What the target speaks."""

    version: Literal["v1", "v2"] = "v2"
    """`v2` posts tensors to `/v2/models/NAME/infer`, `v1` posts instances to `/v1/models/NAME:predict`."""

    text_rank: Literal[1, 2] = 1
    """Dimensions of tensors of text: 1 is the shape [texts], 2 is [texts, 1]; v2 only."""

    max_batch: Count | None = None
    """Most texts in one request to the target; unset is no limit."""

    chat: OipChatConfig | None = None
    """How chat completions are made; unset does not offer them."""

    completions: OipTextConfig | None = None
    """How completions are made; unset does not offer them."""

    embeddings: OipEmbeddingsConfig | None = None
    """How embeddings are made; unset does not offer them."""

    rerank: OipRerankConfig | None = None
    """How documents are ranked; unset does not offer it."""


UrlPath = Annotated[str, Field(pattern=r"^(/[^\s#]*)?$")]


class UsageConfig(BaseConfig):
    """Where an answer tells its tokens."""

    prompt_tokens: Text | None = None
    """JMESPath to the tokens of the request; unset counts none."""

    completion_tokens: Text | None = None
    """JMESPath to the tokens of the answer; unset counts none."""


class HttpRequestConfig(BaseConfig):
    """One request to a JSON service, and its answer."""

    path: UrlPath = ""
    """Path after `target.url`, such as `/generate`; unset is the URL itself."""

    request: Text
    """
    Jinja template of the JSON to send.

    The fields of the client's request are its variables, each after `| tojson`; those it may leave out need a default,
    such as `{{ temperature | default(1) | tojson }}`. Besides them: `request`, all of it; `prompt` of completions;
    `texts` of embeddings, always a list; `query` and `documents` of rerank; `max_tokens`, by either of its names.
    Content in parts of `messages` is joined to a text, and a part that is no text is 400; `request.messages` has them
    as they came.
    """

    usage: UsageConfig = UsageConfig()
    """Where the answer tells its tokens."""


class HttpTextConfig(HttpRequestConfig):
    """A request to a JSON service that is answered with text."""

    response: Text
    """JMESPath to the text of the answer, such as `outputs[0].text`."""

    finish_reason: Text | None = None
    """JMESPath to why the answer ended; what speaks of length or max means `length`, all else `stop`."""

    stream: Text | None = None
    """JMESPath to the next piece of text in each line or event of a stream; unset streams the answer as one piece."""

    stream_path: UrlPath | None = None
    """Path after `target.url` of requests that stream; unset is `path`, and the template asks `{% if stream %}`."""


class HttpChatConfig(HttpTextConfig, ChatConfig):
    """
    A request to a JSON service that is answered with the next message; with a chat template, `prompt` is a variable.
    """


class HttpEmbeddingsConfig(HttpRequestConfig):
    """A request to a JSON service that is answered with vectors."""

    response: Text
    """JMESPath to the list of vectors, or to one vector where `max_batch` is 1."""


class HttpRerankConfig(HttpRequestConfig):
    """A request to a JSON service that is answered with scores."""

    response: Text
    """JMESPath to the list of scores, in the order of the documents."""


class HttpConfig(OperationsConfig):
    """The target is a service with JSON of its own at `target.url`."""

    kind: Literal["http"]
    """What the target speaks."""

    max_batch: Count | None = None
    """Most texts in one request for embeddings; unset is no limit."""

    chat: HttpChatConfig | None = None
    """How chat completions are made; unset does not offer them."""

    completions: HttpTextConfig | None = None
    """How completions are made; unset does not offer them."""

    embeddings: HttpEmbeddingsConfig | None = None
    """How embeddings are made; unset does not offer them."""

    rerank: HttpRerankConfig | None = None
    """How documents are ranked; unset does not offer it."""
