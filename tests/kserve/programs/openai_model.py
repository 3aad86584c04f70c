"""A model of the shape of KServe's samples for OpenAI's clients: it completes with the prompt, and chats over that."""

import argparse

from kserve import ModelServer, model_server
from kserve.protocol.rest.openai import ChatPrompt, OpenAIChatAdapterModel
from kserve.protocol.rest.openai.types import Completion, CompletionChoice, UsageInfo


class Echo(OpenAIChatAdapterModel):
    """Repeats what it reads."""

    def apply_chat_template(self, request):
        return ChatPrompt(prompt=" ".join(str(message["content"]) for message in request.messages))

    async def create_completion(self, request, raw_request=None, context=None):
        choice = CompletionChoice(index=0, text=request.prompt, finish_reason="stop", logprobs=None)
        usage = UsageInfo(prompt_tokens=1, completion_tokens=2, total_tokens=3)
        return Completion(id="1", object="text_completion", created=1, model=self.name, choices=[choice], usage=usage)


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    ModelServer().start([Echo(args.model_name)])
