"""The tokens of an answer as the answer says them, for models that compute elsewhere.

Source: https://platform.openai.com/docs/api-reference, the object `usage` of chat completions, completions, embeddings
and responses; https://docs.anthropic.com/en/api/messages-streaming for where events have it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from appliance.core.request_context import RequestContext
from appliance.core.sse import data_lines

_MENTION = b'"usage"'

# What events have that bring text: chats, responses and messages a delta, completions a text. A quote within a text has
# a backslash before it, so these are keys.
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
        """Tokens of the prompt; Anthropic leaves those of its cache out of its count."""
        if self.input_tokens is None:
            return self.prompt_tokens
        return self.input_tokens + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)

    @property
    def output(self) -> int | None:
        """Tokens of the answer."""
        return self.completion_tokens if self.output_tokens is None else self.output_tokens

    @property
    def cached(self) -> int | None:
        """Those of the prompt that were known already."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return details.cached_tokens if details else self.cache_read_input_tokens


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    response: _Inner | None = None
    message: _Inner | None = None


class TokenUsage:
    """What one answer says of its tokens, added to the record: a request may need several answers."""

    def __init__(self, record: RequestContext) -> None:
        self._record = record
        self._prompt = self._cached = self._output = 0
        self._is_concluded = False

    @property
    def is_needed(self) -> bool:
        """Whether the answer is to be read: no engine of ours has counted its tokens."""
        return not self._record.is_metered

    def feed(self, chunk: bytes) -> None:
        """Take in some whole server-sent events; until one says the tokens, each with a piece of text counts as one."""
        if not self._is_concluded and (pieces := chunk.count(_DELTA) or chunk.count(_TEXT)):
            self._write(self._output + pieces)
        if _MENTION in chunk:
            for data in data_lines(chunk):
                if _MENTION in data:
                    self.read(data)

    def conclude(self, event: bytes) -> None:
        """Take in the event with the tokens of the whole answer, which may come before the pieces that it counts."""
        self.feed(event)
        self._is_concluded = True

    def read(self, body: bytes) -> None:
        """Take in a JSON object; what has no usage that can be read says nothing."""
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        for each in (answer, answer.response, answer.message):
            if each is not None and each.usage is not None:
                self._take(each.usage)

    def _take(self, usage: _Usage) -> None:
        """The last word counts: an answer says its tokens so far."""
        record = self._record
        if (prompt := usage.prompt) is not None:
            record.prompt_tokens, self._prompt = (record.prompt_tokens or 0) + prompt - self._prompt, prompt
        if (output := usage.output) is not None:
            self._write(output)
        if (cached := usage.cached) is not None:
            record.cached_tokens, self._cached = (record.cached_tokens or 0) + cached - self._cached, cached

    def _write(self, output: int) -> None:
        self._record.output_tokens = (self._record.output_tokens or 0) + output - self._output
        self._output = output
