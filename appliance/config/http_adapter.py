"""The section of the kind `http`: a target with JSON of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.config.adapters import ChatConfig, Count, OfferingConfig, Text
from appliance.config.base import BaseConfig

UrlPath = Annotated[str, Field(pattern=r"^(/[^\s#]*)?$")]


class UsageConfig(BaseConfig):
    """Where an answer tells its tokens."""

    prompt_tokens: Text | None = None
    """JMESPath to the tokens of the request; unset counts none."""

    completion_tokens: Text | None = None
    """JMESPath to the tokens of the answer; unset counts none."""


class HttpExchangeConfig(BaseConfig):
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


class HttpTextConfig(HttpExchangeConfig):
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


class HttpEmbeddingsConfig(HttpExchangeConfig):
    """A request to a JSON service that is answered with vectors."""

    response: Text
    """JMESPath to the list of vectors, or to one vector where `max_batch` is 1."""


class HttpRerankConfig(HttpExchangeConfig):
    """A request to a JSON service that is answered with scores."""

    response: Text
    """JMESPath to the list of scores, in the order of the documents."""


class HttpConfig(OfferingConfig):
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
