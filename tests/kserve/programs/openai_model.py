"""Models of the shape of KServe's samples for OpenAI's clients."""

import argparse

from kserve import ModelServer, model_server
from kserve.protocol.rest.openai import (
    ChatPrompt,
    OpenAIChatAdapterModel,
    OpenAIEncoderModel,
    OpenAIGenerativeModel,
    OpenAIProxyModel,
)
from kserve.protocol.rest.openai.errors import OpenAIError, create_error_response
from kserve.protocol.rest.openai.types import (
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatMessage,
    ChoiceDelta,
    ChunkChoice,
    Completion,
    CompletionChoice,
    Embedding,
    EmbeddingResponseData,
    UsageInfo,
)

parser = argparse.ArgumentParser(parents=[model_server.parser])
parser.add_argument("--predictor_url")
args, _ = parser.parse_known_args()


class Echo(OpenAIChatAdapterModel):
    """Completes with the prompt, and chats over that."""

    def apply_chat_template(self, request):
        return ChatPrompt(prompt=" ".join(str(message["content"]) for message in request.messages))

    async def create_completion(self, request, raw_request=None, context=None):
        choice = CompletionChoice(index=0, text=request.prompt, finish_reason="stop", logprobs=None)
        usage = UsageInfo(prompt_tokens=1, completion_tokens=2, total_tokens=3)
        return Completion(id="1", object="text_completion", created=1, model=self.name, choices=[choice], usage=usage)


class Speaker(OpenAIGenerativeModel):
    """Answers with the last message, whole or word by word."""

    async def healthy(self):
        return await super().healthy()

    async def create_completion(self, request, raw_request=None, context=None):
        if request.prompt == "raise":
            raise OpenAIError(create_error_response("too long", status_code=400, param="prompt"))
        return create_error_response("no completions here")

    async def create_chat_completion(self, request, raw_request=None, context=None):
        context["response"].headers["x-client"] = raw_request.headers.get("x-client", raw_request.url.path)
        text = request.messages[-1]["content"]
        if request.stream:
            return self.stream(text)
        message = ChatMessage(role="assistant", content=text)
        choice = ChatCompletionChoice(index=0, message=message, finish_reason="stop")
        usage = UsageInfo(prompt_tokens=1, completion_tokens=2, total_tokens=3)
        return ChatCompletion(id="1", created=1, model=self.name, choices=[choice], usage=usage)

    async def stream(self, text):
        for word in text.split():
            choice = ChunkChoice(index=0, delta=ChoiceDelta(role="assistant", content=word), finish_reason=None)
            chunk = ChatCompletionChunk(id="1", created=1, model=self.name, choices=[choice])
            yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
        yield "data: [DONE]\n\n"


class Embedder(OpenAIEncoderModel):
    """Embeds a text as its length."""

    async def create_embedding(self, request, raw_request=None, context=None):
        data = [EmbeddingResponseData(index=0, embedding=[float(len(request.input))])]
        return Embedding(
            id="1", created=1, model=self.name, data=data, usage=UsageInfo(prompt_tokens=1, total_tokens=1)
        )

    async def create_rerank(self, request, raw_request=None, context=None):
        return create_error_response("no ranks here")


class Polite(OpenAIProxyModel):
    """Asks politely, and answers loudly."""

    def preprocess_chat_completion_request(self, request, raw_request=None):
        request.messages.append({"role": "user", "content": "please"})

    def postprocess_chat_completion(self, chat_completion, request, raw_request=None):
        chat_completion.choices[0].message.content += "!"

    def postprocess_chat_completion_chunk(self, chat_completion_chunk, request, raw_request=None):
        for choice in chat_completion_chunk.choices:
            choice.delta.content = (choice.delta.content or "").upper()


if __name__ == "__main__":
    models = [Echo(args.model_name), Speaker("speaker"), Embedder("embedder")]
    if args.predictor_url:
        models += [Polite("polite", predictor_url=args.predictor_url), OpenAIProxyModel("proxy", args.predictor_url)]
    ModelServer().start(models)
