"""
A model in Python; examples/python.yaml serves it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from appliance.openai import Context, OpenAIGenerativeModel, RawRequest
from appliance.openai.types import ChatCompletionChunk, ChatCompletionRequest


class Parrot(OpenAIGenerativeModel):
    """
    Says what it hears, word by word.
    """

    def __init__(self, name: str, greeting: str = "You said:") -> None:
        super().__init__(name)
        self.greeting = greeting

    async def create_chat_completion(
        self,
        request: ChatCompletionRequest,
        raw_request: RawRequest | None = None,  # noqa: ARG002 - the headers are here
        context: Context | None = None,  # noqa: ARG002
    ) -> AsyncGenerator[ChatCompletionChunk]:
        """
        The chunks; a client that wants the whole gets them put together.
        """
        for word in (self.greeting, *str(request.messages[-1]["content"]).split()):
            yield ChatCompletionChunk.model_validate({"choices": [{"delta": {"content": f"{word} "}}]})
