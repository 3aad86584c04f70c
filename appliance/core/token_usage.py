"""Token counts that are read from a response, for models that compute elsewhere.

Source: https://platform.openai.com/docs/api-reference, the object `usage` of chat completions, completions, embeddings
and responses; https://docs.anthropic.com/en/api/messages-streaming for where events have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated

import msgspec

from appliance.core.request_context import RequestContext
from appliance.core.sse import data_lines

_MENTION = b'"usage"'

# Keys of events with text: chats, responses and messages have a delta, completions a text. A quote within a text is
# escaped, so these are keys.
_DELTA, _TEXT = b'"delta":', b'"text":'

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    input_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    output_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None

    def counts(self) -> Mapping[str, int | None]:
        """Return the counts by the names of the context; None is unknown."""
        prompt, cached = self.prompt_tokens, self.cache_read_input_tokens
        if self.input_tokens is not None:
            # Anthropic's count leaves out those of its cache.
            prompt = self.input_tokens + (cached or 0) + (self.cache_creation_input_tokens or 0)
        if details := self.prompt_tokens_details or self.input_tokens_details:
            cached = details.cached_tokens
        output = self.completion_tokens if self.output_tokens is None else self.output_tokens
        return {"prompt_tokens": prompt, "output_tokens": output, "cached_tokens": cached}


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    usage: _Usage | None = None
    response: _Inner | None = None
    message: _Inner | None = None


class TokenUsage:
    """Reads the token counts of one response and adds them to the context; a request may need several responses."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        # Of this response, by the names of the context.
        self._counts = Counter[str]()
        self._is_concluded = False

    @property
    def is_needed(self) -> bool:
        """Whether the response is to be read: none of our engines has counted its tokens."""
        return not self._context.is_metered

    def feed(self, chunk: bytes) -> None:
        """Read whole server-sent events; until one has the counts, each event with text counts as one token."""
        if not self._is_concluded and (pieces := chunk.count(_DELTA) or chunk.count(_TEXT)):
            self._set("output_tokens", self._counts["output_tokens"] + pieces)
        if _MENTION in chunk:
            for data in data_lines(chunk):
                if _MENTION in data:
                    self.read(data)

    def conclude(self, event: bytes) -> None:
        """Read the event with the counts of the whole response, which may arrive before the text that it counts."""
        self.feed(event)
        self._is_concluded = True

    def read(self, body: bytes) -> None:
        """Read a JSON object; one without a readable usage changes nothing."""
        try:
            response = msgspec.json.decode(body, type=_Response)
        except (ValueError, RecursionError):
            return
        for each in (response, response.response, response.message):
            if each is not None and each.usage is not None:
                for name, count in each.usage.counts().items():
                    if count is not None:
                        self._set(name, count)

    def _set(self, name: str, count: int) -> None:
        """Replace an earlier count of this response, which is a part of this one, in the context."""
        setattr(self._context, name, (getattr(self._context, name) or 0) + count - self._counts[name])
        self._counts[name] = count
