"""Config of the adapter class: the protocols `completions`, `oip` and `http` of its target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from appliance.config.base import BaseConfig, text_like
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
    """Format of the model's tool calls: JSON with `name` and `arguments` or `parameters`, or a list of them."""

    begin: Text = "<tool_call>"
    """Text before the JSON."""

    end: Text | None = "</tool_call>"
    """Text after the JSON; null is the end of the response."""


class ChatConfig(BaseConfig):
    """Conversion of a conversation to one prompt."""

    chat_template: Text | None = None
    """Jinja template for chat, inline or the path of a file; unset is the tokenizer's."""

    tokenizer: StorageConfig | None = None
    """Location of the tokenizer's chat template and special tokens: a directory with `tokenizer_config.json`, or that
    file, such as `hf://OWNER/NAME/tokenizer_config.json`; for a whole repository the weights are downloaded too.
    """

    response_role: Text = "assistant"
    """Role of the response's messages."""

    stop: tuple[Text, ...] = ()
    """Stop texts in addition to the client's, such as `<|im_end|>`."""

    tool_calls: ToolCallsConfig | None = None
    """Format of tool calls, `{}` for `<tool_call>` marks; unset leaves them in the text."""


class RequiredChatConfig(ChatConfig):
    """`ChatConfig` for targets that only take prompts, so that a template is required."""

    @model_validator(mode="after")
    def _has_template(self) -> Self:
        if self.chat_template is None and self.tokenizer is None:
            raise ValueError("has no chat template; must have chat_template, or a tokenizer that has one")
        return self


class CompletionsConfig(RequiredChatConfig):
    """A target with OpenAI's `/v1/completions` and without chat."""

    kind: Literal["completions"]
    """Protocol of the target."""

    max_tokens: Count | None = None
    """Token limit of a response if the client sets none; unset is the rest of the context if the target is a model of
    this file that can count tokens, and 1024 otherwise.
    """

    defaults: dict[str, JsonValue] = Field(default_factory=dict)
    """Fields of every request to the target that the client does not set, such as `add_special_tokens: false`; null
    removes a field that is sent by default, as this one is to a model of this file.
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
    """A protocol that offers each operation that has a key."""

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
    """Text input and text output."""

    input: Text | None = None
    """Name of the tensor for the prompt; unset is `text_input`, and with v1 the prompt itself is an instance."""

    output: Text | None = None
    """Name of the tensor of the response; unset is `text_output`, and with v1 a prediction is the response."""

    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Parameters of every request; the client's sampling fields override them."""


class OipChatConfig(OipTextConfig, RequiredChatConfig):
    """Messages as input, converted by a chat template, and text output."""


class OipEmbeddingsConfig(BaseConfig):
    """Text input and vector output."""

    input: Text | None = None
    """Name of the tensor for the texts; unset is `text_input`, and with v1 each text itself is an instance."""

    output: Text | None = None
    """Name of the tensor of the vectors, with shape [texts, dimensions]; unset is the only output."""


class OipRerankConfig(BaseConfig):
    """Pairs of a query and a document as input, and scores as output."""

    query: Text = "query"
    """Name of the tensor for the query, repeated for each document."""

    document: Text = "document"
    """Name of the tensor for the documents."""

    output: Text | None = None
    """Name of the tensor with one score per document; unset is the only output."""


class OipConfig(OperationsConfig):
    """A target with the Open Inference Protocol at `target.url`."""

    kind: Literal["oip"]
    """Protocol of the target."""

    version: Literal["v1", "v2"] = "v2"
    """`v2` posts tensors to `/v2/models/NAME/infer`, `v1` posts instances to `/v1/models/NAME:predict`."""

    text_rank: Literal[1, 2] = 1
    """Dimensions of text tensors: 1 is the shape [texts], 2 is [texts, 1]; v2 only."""

    max_batch: Count | None = None
    """Limit of texts in one request to the target; unset is no limit."""

    chat: OipChatConfig | None = None
    """Mapping of chat completions; unset does not offer them."""

    completions: OipTextConfig | None = None
    """Mapping of completions; unset does not offer them."""

    embeddings: OipEmbeddingsConfig | None = None
    """Mapping of embeddings; unset does not offer them."""

    rerank: OipRerankConfig | None = None
    """Mapping of rerank; unset does not offer it."""


UrlPath = Annotated[str, text_like(r"^(/[^\s#]*)?$", "a path that begins with /, or empty")]


class UsageConfig(BaseConfig):
    """Location of the token counts in a response."""

    prompt_tokens: Text | None = None
    """JMESPath of the prompt tokens; unset counts none."""

    completion_tokens: Text | None = None
    """JMESPath of the completion tokens; unset counts none."""


class HttpRequestConfig(BaseConfig):
    """A request to a JSON service, and its response."""

    path: UrlPath = ""
    """Path after `target.url`, such as `/generate`; unset is the URL itself."""

    request: Text
    """Jinja template of the JSON to send.

    Its variables are the fields of the client's request. Pass each through `| tojson`, and give optional fields a
    default, such as `{{ temperature | default(1) | tojson }}`. Further variables: `request`, the whole request;
    `prompt` of completions; `texts` of embeddings, always a list; `query` and `documents` of rerank; `max_tokens`, by
    either of its names. Content parts of `messages` are joined to one text, and a part that is not text is 400;
    `request.messages` has the original parts.
    """

    usage: UsageConfig = UsageConfig()
    """Location of the token counts in the response."""


class HttpTextConfig(HttpRequestConfig):
    """A request to a JSON service whose response is text."""

    response: Text
    """JMESPath of the text in the response, such as `outputs[0].text`."""

    finish_reason: Text | None = None
    """JMESPath of the finish reason; values that contain length or max mean `length`, all others `stop`."""

    stream: Text | None = None
    """JMESPath of the next text in each line or event of a stream; unset streams the response as one chunk."""

    stream_path: UrlPath | None = None
    """Path after `target.url` for streaming requests; unset is `path`, and the template can use `{% if stream %}`."""


class HttpChatConfig(HttpTextConfig, ChatConfig):
    """A request to a JSON service whose response is the next message; with a chat template, `prompt` is a variable."""


class HttpEmbeddingsConfig(HttpRequestConfig):
    """A request to a JSON service whose response is vectors."""

    response: Text
    """JMESPath of the list of vectors, or of one vector if `max_batch` is 1."""


class HttpRerankConfig(HttpRequestConfig):
    """A request to a JSON service whose response is scores."""

    response: Text
    """JMESPath of the list of scores, in the order of the documents."""


class HttpConfig(OperationsConfig):
    """A target with its own JSON format at `target.url`."""

    kind: Literal["http"]
    """Protocol of the target."""

    max_batch: Count | None = None
    """Limit of texts in one request for embeddings; unset is no limit."""

    chat: HttpChatConfig | None = None
    """Mapping of chat completions; unset does not offer them."""

    completions: HttpTextConfig | None = None
    """Mapping of completions; unset does not offer them."""

    embeddings: HttpEmbeddingsConfig | None = None
    """Mapping of embeddings; unset does not offer them."""

    rerank: HttpRerankConfig | None = None
    """Mapping of rerank; unset does not offer it."""
