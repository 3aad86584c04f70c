"""
The section of the kind `http`: a target with JSON of its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.config.adapters import ChatSection, Count, OfferingSection, Text
from appliance.config.base import BaseConfig

UrlPath = Annotated[str, Field(pattern=r"^(/[^\s#]*)?$")]


class UsageSection(BaseConfig):
    """
    Where an answer tells its tokens.
    """

    prompt_tokens: Text | None = None
    """JMESPath to the tokens of the request; unset counts none."""

    completion_tokens: Text | None = None
    """JMESPath to the tokens of the answer; unset counts none."""


class HttpExchangeSection(BaseConfig):
    """
    One request to a JSON service, and its answer.
    """

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

    usage: UsageSection = UsageSection()
    """Where the answer tells its tokens."""


class HttpTextSection(HttpExchangeSection):
    """
    A request to a JSON service that is answered with text.
    """

    response: Text
    """JMESPath to the text of the answer, such as `outputs[0].text`."""

    finish_reason: Text | None = None
    """JMESPath to why the answer ended; what speaks of length or max means `length`, all else `stop`."""

    stream: Text | None = None
    """JMESPath to the next piece of text in each line or event of a stream; unset streams the answer as one piece."""

    stream_path: UrlPath | None = None
    """Path after `target.url` of requests that stream; unset is `path`, and the template asks `{% if stream %}`."""


class HttpChatSection(HttpTextSection, ChatSection):
    """
    A request to a JSON service that is answered with the next message; with a chat template, `prompt` is a variable.
    """


class HttpEmbeddingsSection(HttpExchangeSection):
    """
    A request to a JSON service that is answered with vectors.
    """

    response: Text
    """JMESPath to the list of vectors, or to one vector where `max_batch` is 1."""


class HttpRerankSection(HttpExchangeSection):
    """
    A request to a JSON service that is answered with scores.
    """

    response: Text
    """JMESPath to the list of scores, in the order of the documents."""


class HttpSection(OfferingSection):
    """
    The target is a service with JSON of its own at `target.url`.
    """

    kind: Literal["http"]
    """What the target speaks."""

    max_batch: Count | None = None
    """Most texts in one request for embeddings; unset is no limit."""

    chat: HttpChatSection | None = None
    """How chat completions are made; unset does not offer them."""

    completions: HttpTextSection | None = None
    """How completions are made; unset does not offer them."""

    embeddings: HttpEmbeddingsSection | None = None
    """How embeddings are made; unset does not offer them."""

    rerank: HttpRerankSection | None = None
    """How documents are ranked; unset does not offer it."""
