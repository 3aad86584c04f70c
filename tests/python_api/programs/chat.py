"""A chat model in Python, as a user would write it."""

import sys

from appliance import ModelServer
from appliance.openai import OpenAIGenerativeModel
from appliance.openai.types import ChatCompletion, ChatCompletionRequest


class Parrot(OpenAIGenerativeModel):
    """Says what it hears."""

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: object = None, context: object = None
    ) -> ChatCompletion:
        heard = request.messages[-1]["content"]
        message = {"role": "assistant", "content": f"You said: {heard}"}
        return ChatCompletion(choices=[{"index": 0, "message": message, "finish_reason": "stop"}])


if __name__ == "__main__":
    parrot = Parrot("parrot")
    parrot.load()
    ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), drain_delay_seconds=0).start([parrot])
