"""A program that changes what a server elsewhere says, and puts a chat over its completions."""

import os
import sys
from collections.abc import AsyncGenerator
from typing import Any

from appliance import ModelServer
from appliance.openai import ChatPrompt, OpenAIChatAdapterModel, OpenAIProxyModel, RawRequest
from appliance.openai.types import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest


class Shouting(OpenAIProxyModel):
    """Shouts what the upstream says; what it streams goes by as it is."""

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: RawRequest | None = None, context: Any = None
    ) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk]:
        request.messages.append({"role": "user", "content": "shout"})
        answer = await super().create_chat_completion(request, raw_request, context)
        if isinstance(answer, ChatCompletion):
            message = answer.choices[0].message
            message.content = str(message.content).upper()
        return answer


class Adapted(OpenAIChatAdapterModel):
    """Chats with a template of its own."""

    def apply_chat_template(self, request: ChatCompletionRequest) -> ChatPrompt:
        return ChatPrompt("bot", " ".join(message["content"] for message in request.messages))


if __name__ == "__main__":
    shouting = Shouting("shouting", os.environ["UPSTREAM"], api_key="secret", health={"interval_seconds": 0.2})
    adapted = Adapted("adapted", shouting)
    ModelServer(int(sys.argv[1]), None, host="127.0.0.1", drain_delay_seconds=0).start([shouting, adapted])
