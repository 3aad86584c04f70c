"""Token counts that are read from a response, for models that compute elsewhere.

Source: https://platform.openai.com/docs/api-reference, the object `usage` of chat completions, completions, embeddings
and responses; https://docs.anthropic.com/en/api/messages-streaming for where events have it.
"""

from __future__ import annotations

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

    @property
    def prompt(self) -> int | None:
        """Prompt tokens; Anthropic's count leaves out those of its cache."""
        if self.input_tokens is None:
            return self.prompt_tokens
        return self.input_tokens + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)

    @property
    def output(self) -> int | None:
        """Output tokens."""
        return self.completion_tokens if self.output_tokens is None else self.output_tokens

    @property
    def cached(self) -> int | None:
        """Prompt tokens that came from a cache."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return details.cached_tokens if details else self.cache_read_input_tokens


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
        self._prompt = self._cached = self._output = 0
        self._is_concluded = False

    @property
    def is_needed(self) -> bool:
        """Whether the response is to be read: none of our engines has counted its tokens."""
        return not self._context.is_metered

    def feed(self, chunk: bytes) -> None:
        """Read whole server-sent events; until one has the counts, each event with text counts as one token."""
        if not self._is_concluded and (pieces := chunk.count(_DELTA) or chunk.count(_TEXT)):
            self._write(self._output + pieces)
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
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        for each in (response, response.response, response.message):
            if each is not None and each.usage is not None:
                self._add(each.usage)

    def _add(self, usage: _Usage) -> None:
        """Add the counts; the last ones replace earlier ones, which are those so far."""
        context = self._context
        if (prompt := usage.prompt) is not None:
            context.prompt_tokens, self._prompt = (context.prompt_tokens or 0) + prompt - self._prompt, prompt
        if (output := usage.output) is not None:
            self._write(output)
        if (cached := usage.cached) is not None:
            context.cached_tokens, self._cached = (context.cached_tokens or 0) + cached - self._cached, cached

    def _write(self, output: int) -> None:
        self._context.output_tokens = (self._context.output_tokens or 0) + output - self._output
        self._output = output
