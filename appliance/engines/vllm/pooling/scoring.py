"""Scores of pairs, and documents in the order of their relevance to a query.

Cross-encoders read both texts of a pair together; for embeddings the score is the cosine.
Sources of the shapes: https://docs.cohere.com/reference/rerank, https://api.jina.ai/redoc, vLLM's ``/score``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from pydantic import TypeAdapter

from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.serving import Endpoint

Serve = Callable[..., Awaitable[Any]]
"""
vLLM's serving class of scores.
"""

# The two sides of a score, under each of the names vLLM has for them.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class RerankEndpoint:
    """Orders documents; they and the query may be texts, or objects with a `text`."""

    def __init__(self, serve: Serve) -> None:
        from vllm.entrypoints.pooling.scoring.protocol import RerankRequest

        self._endpoint = Endpoint(TypeAdapter(RerankRequest), serve, texts="documents")

    async def __call__(self, call: ModelRequest) -> ModelResponse:
        """Answer one call; see `Answer`."""
        request = _members(call.body)
        for side in ("query", "documents"):
            if not request.get(side):
                raise RequestError(f"{side} is missing or empty; there is nothing to rank", param=side)
        documents = request["documents"]
        if isinstance(documents, list):
            request["documents"] = [_text(each, f"documents[{index}]") for index, each in enumerate(documents)]
        request["query"] = _text(request["query"], "query")
        has_documents = request.pop("return_documents", None)
        if request.get("top_n", 0) is None:
            del request["top_n"]
        reply = await self._endpoint(ModelRequest(Operation.RERANK, msgspec.json.encode(request), call.headers))
        return ModelResponse(_ranking(reply, has_documents=has_documents is not False))


class ScoreEndpoint:
    """Scores one text against one or several, or several one by one."""

    def __init__(self, serve: Serve) -> None:
        from vllm.entrypoints.pooling.scoring.protocol import ScoreRequest

        self._endpoint = Endpoint(TypeAdapter(ScoreRequest), serve)

    async def __call__(self, call: ModelRequest) -> ModelResponse:
        """Answer one call; see `Answer`."""
        request = _members(call.body)
        sides = next((pair for pair in _SIDES if all(side in request for side in pair)), None)
        if sides is None:
            pairs = ", or ".join(" and ".join(pair) for pair in _SIDES)
            missing = next((pair[1] for pair in _SIDES if pair[0] in request), _SIDES[0][0])
            raise RequestError(f"{missing} is missing; there must be {pairs}", param=missing)
        for side in sides:
            if not request[side]:
                raise RequestError(f"{side} is empty; there is nothing to score", param=side)
        return await self._endpoint(call)


def _members(body: bytes) -> dict[str, Any]:  # Any: JSON values
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not a request: {error}") from error


def _text(value: Any, place: str) -> Any:  # Any: JSON values
    """The text of an object that has one; a text itself, and contents of several kinds, stay as they are."""
    if not isinstance(value, dict) or "content" in value:
        return value
    if not isinstance(value.get("text"), str):
        raise RequestError(
            f"{place} has no text; it must be a text, or an object with one", param=place.partition("[")[0]
        )
    return value["text"]


def _ranking(reply: ModelResponse, *, has_documents: bool) -> bytes:
    """vLLM's ranking, which is Jina's, with Cohere's account of tokens and the documents only if they are wanted."""
    if not isinstance(reply.body, bytes):
        raise AssertionError("a ranking is never streamed; this is a bug")
    ranking = _members(reply.body)
    for result in ranking["results"]:
        if has_documents:
            result["document"] = {kind: part for kind, part in result["document"].items() if part is not None}
        else:
            del result["document"]
    ranking["meta"] = {"tokens": {"input_tokens": ranking["usage"]["prompt_tokens"]}}
    return msgspec.json.encode(ranking)
