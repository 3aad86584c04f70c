"""Scores of pairs of texts, and documents ranked by their relevance to a query.

Cross-encoders read both texts of a pair together; for embeddings the score is the cosine.
Sources of the formats: https://docs.cohere.com/reference/rerank, https://api.jina.ai/redoc, vLLM's ``/score``.
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
"""vLLM's serving class of scores."""

# The two sides of a score, by each of vLLM's names for them.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class RerankEndpoint:
    """Ranks documents; they and the query may be texts, or objects with a `text`."""

    def __init__(self, serve: Serve) -> None:
        from vllm.entrypoints.pooling.scoring.protocol import RerankRequest

        self._endpoint = Endpoint(TypeAdapter(RerankRequest), serve, text_field="documents")

    async def __call__(self, request: ModelRequest) -> ModelResponse:
        """Handle one request; see `Handler`."""
        members = _members(request.body)
        for side in ("query", "documents"):
            if not members.get(side):
                raise RequestError(f"{side} is missing or empty; there is nothing to rank", param=side)
        documents = members["documents"]
        if isinstance(documents, list):
            members["documents"] = [_text(item, f"documents[{index}]") for index, item in enumerate(documents)]
        members["query"] = _text(members["query"], "query")
        has_documents = members.pop("return_documents", None) is not False
        if members.get("top_n", 0) is None:
            del members["top_n"]
        request = ModelRequest(Operation.RERANK, msgspec.json.encode(members), request.headers)
        return ModelResponse(_ranking(await self._endpoint(request), has_documents=has_documents))


class ScoreEndpoint:
    """Scores one text against one or several, or several one by one."""

    def __init__(self, serve: Serve) -> None:
        from vllm.entrypoints.pooling.scoring.protocol import ScoreRequest

        self._endpoint = Endpoint(TypeAdapter(ScoreRequest), serve)

    async def __call__(self, request: ModelRequest) -> ModelResponse:
        """Handle one request; see `Handler`."""
        members = _members(request.body)
        sides = next((pair for pair in _SIDES if all(side in members for side in pair)), None)
        if sides is None:
            pairs = ", or ".join(" and ".join(pair) for pair in _SIDES)
            missing = next((pair[1] for pair in _SIDES if pair[0] in members), _SIDES[0][0])
            raise RequestError(f"{missing} is missing; there must be {pairs}", param=missing)
        for side in sides:
            if not members[side]:
                raise RequestError(f"{side} is empty; there is nothing to score", param=side)
        return await self._endpoint(request)


def _members(body: bytes) -> dict[str, Any]:  # Any: JSON values
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not a request: {error}") from error


def _text(value: Any, path: str) -> Any:  # Any: JSON values
    """Return the text of an object that has one; texts, and contents of several kinds, are returned as they are."""
    if not isinstance(value, dict) or "content" in value:
        return value
    if not isinstance(value.get("text"), str):
        raise RequestError(
            f"{path} has no text; it must be a text, or an object with one", param=path.partition("[")[0]
        )
    return value["text"]


def _ranking(response: ModelResponse, *, has_documents: bool) -> bytes:
    """Return vLLM's ranking, which is Jina's, with Cohere's token count, and without documents if so requested."""
    if not isinstance(response.body, bytes):
        raise AssertionError("a ranking is never streamed; this is a bug")
    ranking = _members(response.body)
    for result in ranking["results"]:
        if has_documents:
            result["document"] = {kind: part for kind, part in result["document"].items() if part is not None}
        else:
            del result["document"]
    ranking["meta"] = {"tokens": {"input_tokens": ranking["usage"]["prompt_tokens"]}}
    return msgspec.json.encode(ranking)
