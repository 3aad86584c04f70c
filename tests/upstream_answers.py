"""What a well-behaved upstream says: answers in the shapes of OpenAI, Anthropic, Cohere and vLLM.

Chats, completions and responses say back the last text they were sent; numbers are made from the input.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Any throughout: JSON values.
Body = Mapping[str, Any]

WIDTH = 4
"""The length of an embedding."""


def said(body: Body) -> str:
    """The text an answer is made of: the last one of the request."""
    messages = body.get("messages") or body.get("input") or body.get("prompt") or ""
    last = messages[-1] if isinstance(messages, list) and messages else messages
    content = last.get("content", "") if isinstance(last, dict) else last
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    return f"You said: {content}"


def usage(text: str) -> dict[str, int]:
    """OpenAI's counts, a token for each word."""
    count = len(text.split())
    return {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}


def chat(body: Body) -> dict[str, Any]:
    """A chat completion; it calls the first tool it is offered."""
    text = said(body)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    reason = "stop"
    if _tool(body):
        message |= {"content": None, "tool_calls": [_tool_call(body)]}
        reason = "tool_calls"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return _object("chat.completion", body) | {"choices": [choice], "usage": usage(text)}


def chat_chunks(body: Body) -> Iterator[dict[str, Any]]:
    """The same as a stream: the role, a piece for each word or part of a tool call, the end, and usage if asked for."""
    head = _object("chat.completion.chunk", body)

    def chunk(delta: Body, reason: str | None = None) -> dict[str, Any]:
        return head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    if _tool(body):
        call = _tool_call(body)
        arguments = call["function"]["arguments"]
        yield chunk({"role": "assistant", "content": None})
        yield chunk({"tool_calls": [{"index": 0} | call | {"function": call["function"] | {"arguments": ""}}]})
        for piece in (arguments[:5], arguments[5:]):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        yield chunk({}, "tool_calls")
    else:
        yield chunk({"role": "assistant", "content": ""})
        yield from (chunk({"content": piece}) for piece in pieces(said(body)))
        yield chunk({}, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield head | {"choices": [], "usage": usage(said(body))}


def completion(body: Body) -> dict[str, Any]:
    """A completion."""
    text = said(body)
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    return _object("text_completion", body) | {"choices": [choice], "usage": usage(text)}


def completion_chunks(body: Body) -> Iterator[dict[str, Any]]:
    """The same as a stream."""
    head = _object("text_completion", body)
    text = said(body)
    for piece in pieces(text):
        yield head | {"choices": [{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}]}
    yield head | {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield head | {"choices": [], "usage": usage(text)}


def response(body: Body) -> dict[str, Any]:
    """An answer of the Responses API."""
    content = [{"type": "output_text", "text": said(body), "annotations": []}]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body.get("model"),
        "status": "completed",
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }


def response_events(body: Body) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same as events, each with its name; the model's name stands inside them."""
    whole = response(body)
    yield "response.created", {"response": whole | {"status": "in_progress", "output": []}}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    for piece in pieces(said(body)):
        yield "response.output_text.delta", where | {"delta": piece, "logprobs": []}
    yield "response.completed", {"response": whole}


def message(body: Body) -> dict[str, Any]:
    """An answer of Anthropic's Messages API."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body.get("model"),
        "content": [{"type": "text", "text": said(body)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }


def message_events(body: Body) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same as events."""
    yield "message_start", {"message": message(body) | {"content": [], "stop_reason": None}}
    yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}
    for piece in pieces(said(body)):
        yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield "content_block_stop", {"index": 0}
    yield "message_delta", {"delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 4}}
    yield "message_stop", {}


def embeddings(body: Body) -> dict[str, Any]:
    """A vector for each input, as numbers or as base64."""
    inputs = body.get("input")
    texts = inputs if isinstance(inputs, list) else [inputs]
    vectors: list[Any] = [vector(str(text)) for text in texts]
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{WIDTH}f", *each)).decode() for each in vectors]
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(vectors)]
    count = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "model": body.get("model"), "data": data, "usage": count}


def vector(text: str) -> list[float]:
    """A text's embedding: numbers that 32 bits hold exactly."""
    return [float(len(text)), 0.5, -0.25, float(sum(text.encode()) % 97)]


def rerank(body: Body) -> dict[str, Any]:
    """Documents by the words they share with the query."""
    wanted = set(str(body.get("query")).lower().split())
    texts = [each if isinstance(each, str) else str(each.get("text")) for each in body.get("documents", [])]
    scores = [len(wanted & set(text.lower().split())) / max(len(wanted), 1) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.get("top_n") or len(texts)]
    results = [{"index": i, "document": {"text": texts[i]}, "relevance_score": scores[i]} for i in order]
    return {"id": "rerank-1", "model": body.get("model"), "usage": {"total_tokens": 5}, "results": results}


def score(body: Body) -> dict[str, Any]:
    """One score."""
    data = [{"index": 0, "object": "score", "score": 0.75}]
    return {"id": "score-1", "object": "list", "created": 1, "model": body.get("model"), "data": data, "usage": {}}


def tokenize(body: Body) -> dict[str, Any]:
    """A token for each byte."""
    tokens = list(str(body.get("prompt", "")).encode())
    return {"tokens": tokens, "count": len(tokens), "max_model_len": 2048, "token_strs": None}


def pieces(text: str) -> list[str]:
    """Word by word, the spaces with the word after them."""
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


WHOLE: Mapping[str, Callable[[Body], dict[str, Any]]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/responses": response,
    "/v1/messages": message,
    "/v1/messages/count_tokens": lambda _: {"input_tokens": 3},
    "/v1/embeddings": embeddings,
    "/v1/rerank": rerank,
    "/v2/rerank": rerank,
    "/rerank": rerank,
    "/v1/score": score,
    "/score": score,
    "/tokenize": tokenize,
    "/detokenize": lambda body: {"prompt": bytes(body.get("tokens", [])).decode()},
    "/v1/images/generations": lambda _: {"created": 1, "data": [{"b64_json": "iVBORw0KGgo="}]},
}
"""The answer at each path that takes JSON."""

STREAMED: Mapping[str, Callable[[Body], Iterator[Any]]] = {
    "/v1/chat/completions": chat_chunks,
    "/v1/completions": completion_chunks,
    "/v1/responses": response_events,
    "/v1/messages": message_events,
}
"""The chunks, or named events, at each path that can stream."""


def _object(kind: str, body: Body) -> dict[str, Any]:
    return {"id": f"{kind}-1", "object": kind, "created": 1, "model": body.get("model")}


def _tool(body: Body) -> dict[str, Any] | None:
    """The first tool, unless none may be called or its answer is there already."""
    answered = any(isinstance(each, dict) and each.get("role") == "tool" for each in body.get("messages", ()))
    if body.get("tool_choice") == "none" or answered:
        return None
    tools = body.get("tools") or [None]
    first: dict[str, Any] | None = tools[0]
    return first


def _tool_call(body: Body) -> dict[str, Any]:
    tool = _tool(body) or {}
    name = tool.get("function", {}).get("name")
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps({"city": "Paris"})}}
