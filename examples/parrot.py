"""A model in Python, served by examples/python.yaml."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from appliance.openai import Context, OpenAIGenerativeModel, RawRequest
from appliance.openai.types import ChatCompletionChunk, ChatCompletionRequest


class Parrot(OpenAIGenerativeModel):
    """Repeats the last message, word by word."""

    def __init__(self, name: str, greeting: str = "You said:") -> None:
        super().__init__(name)
        self.greeting = greeting

    async def create_chat_completion(
        self,
        request: ChatCompletionRequest,
        raw_request: RawRequest | None = None,  # noqa: ARG002 - has the request headers
        context: Context | None = None,  # noqa: ARG002
    ) -> AsyncGenerator[ChatCompletionChunk]:
        """Yield the chunks of a stream; a client without streaming gets them as one response."""
        for word in (self.greeting, *str(request.messages[-1]["content"]).split()):
            yield ChatCompletionChunk.model_validate({"choices": [{"delta": {"content": f"{word} "}}]})
