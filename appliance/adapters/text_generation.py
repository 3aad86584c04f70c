"""Completions out of targets that only write text: prompts and choices side by side, stop texts, chunks.

Source: https://platform.openai.com/docs/api-reference/completions/object
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial, reduce
from typing import Protocol

from appliance.adapters.http_client import Headers
from appliance.adapters.messages import Json
from appliance.adapters.openai_responses import AdapterUsage, GeneratedText, completion_choice, head
from appliance.adapters.requests import TextRequest
from appliance.adapters.stop_sequences import StopSequences, cut
from appliance.core.concurrency import gather_limited, merge_streams
from appliance.core.errors import RequestError

_UNTOLD = ("logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix")


class Writer(Protocol):
    """A target that writes text."""

    async def write(self, body: Json, prompt: str, headers: Headers) -> GeneratedText:
        """All of the text.

        Raises:
            RequestError: the target refuses.
            GatewayError: it does not answer.
        """

    def stream(self, body: Json, prompt: str, headers: Headers) -> AsyncGenerator[GeneratedText]:
        """The text in pieces.

        Raises:
            RequestError: the target refuses.
            GatewayError: it does not answer.
        """


@dataclass(frozen=True, slots=True)
class TextGeneration:
    """One request for text, as a completion under the name of `model`."""

    writer: Writer
    request: TextRequest
    headers: Headers
    model: str

    async def answer(self) -> Json | AsyncGenerator[Json]:
        """The completion, or its chunks.

        Raises:
            RequestError: the request wants what text alone cannot give, or the target refuses.
            GatewayError: the target does not answer.
        """
        for field in _UNTOLD:
            # 0 of `logprobs` is one for each token.
            if self.request.body.get(field) not in (None, "") and self.request.body[field] is not False:
                raise RequestError(f"{field} is not supported by this model", param=field, code="unsupported_parameter")
        return self._chunks() if self.request.is_streamed else await self._whole()

    async def _whole(self) -> Json:
        request = self.request
        write = self.writer.write
        texts = await gather_limited([partial(write, request.body, each, self.headers) for each in self._prompts()])
        choices = [_choice(index, text, request.stop) for index, text in enumerate(texts)]
        usage = reduce(AdapterUsage.__add__, (text.usage for text in texts))
        made = head("text_completion", "cmpl", self.model) | {"choices": choices}
        return made | {"usage": usage.describe() if usage.is_told else None}

    async def _chunks(self) -> AsyncGenerator[Json]:
        frame = head("text_completion", "cmpl", self.model) | ({"usage": None} if self.request.wants_usage else {})
        streams = [self._pieces(prompt) for prompt in self._prompts()]
        usage = AdapterUsage()
        async with aclosing(merge_streams(streams)) as pieces:
            async for index, piece in pieces:
                usage += piece.usage
                yield frame | {"choices": [completion_choice(index, piece.text, piece.reason)]}
        if self.request.wants_usage:
            yield frame | {"choices": [], "usage": usage.describe()}

    async def _pieces(self, prompt: str) -> AsyncGenerator[GeneratedText]:
        """The pieces of one choice up to a stop text; the last one alone has a reason."""
        stops, reason, usage = StopSequences(self.request.stop), "stop", AdapterUsage()
        async with aclosing(self.writer.stream(self.request.body, prompt, self.headers)) as pieces:
            async for piece in pieces:
                usage, reason = usage + piece.usage, piece.reason or reason
                if text := stops.take(piece.text):
                    yield GeneratedText(text)
                if stops.has_met:
                    reason = "stop"
                    break
        yield GeneratedText(stops.rest(), reason, usage)

    def _prompts(self) -> list[str]:
        return [prompt for prompt in self.request.prompts for _ in range(self.request.n)]


def _choice(index: int, text: GeneratedText, stop: Sequence[str]) -> Json:
    kept = cut(text.text, stop)
    return completion_choice(index, kept, "stop" if kept != text.text else text.reason or "stop")
