"""OpenAI's requests as objects, for models written in Python; unknown fields are kept too.

Source: https://platform.openai.com/docs/api-reference; rerank is Cohere's and Jina's; fields beyond them are vLLM's,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, Operation
from appliance.core.openai_types import Json


class Request(BaseModel):
    """What a client sent; unknown fields are in `model_extra`, and can be read like the others."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    """The name the client used; None if it sent none."""

    user: str | None = None
    """The end user, as the client calls it."""


class GenerationRequest(Request):
    """The common fields of chats and completions; None is unset."""

    stream: bool | None = False
    stream_options: Json | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    # Fields of vLLM.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    structured_outputs: Json | None = None
    response_format: Json | None = None
    priority: int | None = None
    request_id: str | None = None


class ChatCompletionRequest(GenerationRequest):
    """The body of a request to `/v1/chat/completions`; messages and tools are plain mappings."""

    messages: Annotated[list[Json], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[Json] | None = None


class CompletionRequest(GenerationRequest):
    """The body of a request to `/v1/completions`; a prompt is text, texts, token ids, or lists of them."""

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    logprobs: int | None = None
    best_of: int | None = None


class EmbeddingRequest(Request):
    """The body of a request to `/v1/embeddings`.

    Return vectors as numbers, whatever `encoding_format` says: they are encoded as the client requests.
    """

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: str | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate_prompt_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        """The texts to embed, one or several; empty if the client sent token ids."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        return [each for each in inputs if isinstance(each, str)]


class RerankRequest(Request):
    """The body of a request to `/v1/rerank`; a `top_n` of None or 0 is all documents."""

    query: str
    documents: Annotated[list[str | Json], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: int | None = None

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [each if isinstance(each, str) else str(each.get("text", "")) for each in self.documents]


_CLASSES: Mapping[Operation, type[Request]] = {
    Operation.CHAT_COMPLETION: ChatCompletionRequest,
    Operation.COMPLETION: CompletionRequest,
    Operation.EMBEDDING: EmbeddingRequest,
    Operation.RERANK: RerankRequest,
}


def decode_request(request: ModelRequest) -> Request:
    """Return the body of a request as an object.

    Raises:
        RequestError: it is not one.
    """
    try:
        return _CLASSES[request.operation].model_validate_json(request.body)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
    # The rest of the location is the type that was tried.
    param = str(detail["loc"][0]) if detail["loc"] else None
    if detail["type"] == "missing":
        raise RequestError(f"{param} is missing; it must be given", param=param)
    raise RequestError(f"{param or 'The body'} is wrong: {detail['msg']}", param=param)
