"""The chunks of a stream put together again."""

from __future__ import annotations

from typing import Any

from appliance.python_api.serialization import Json


class StreamAggregator:
    """One answer under way, chunk by chunk."""

    def __init__(self, frame: Json, *, is_chat: bool) -> None:
        self._answer = dict(frame)
        self._is_chat = is_chat
        self._choices: dict[int, Json] = {}

    def take(self, chunk: Json) -> None:
        """Add what a chunk has."""
        kind = self._answer["object"]
        said = {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        self._answer |= said | {"object": kind}
        for position, choice in enumerate(chunk.get("choices") or ()):
            index = choice.get("index", position)
            started = self._choices.setdefault(index, {"index": index, "logprobs": None, "finish_reason": None})
            _add_choice(started, choice)

    def answer(self) -> Json:
        """The whole."""
        choices = [self._finished(choice) for _, choice in sorted(self._choices.items())]
        return {**self._answer, "choices": choices}

    def _finished(self, choice: Json) -> Json:
        said = choice.pop("delta", {})
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        if not self._is_chat:
            return {"text": "", **choice}
        calls = said.pop("tool_calls", None)
        message = {"role": "assistant", "content": None, **said}
        if calls:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        return {**choice, "message": message}


def _add_choice(choice: Json, piece: Json) -> None:
    for name, value in piece.items():
        if name == "delta":
            _add_delta(choice.setdefault("delta", {}), value or {})
        elif name == "logprobs":
            choice[name] = _joined(choice[name], value)
        elif name == "text":
            choice[name] = choice.get(name, "") + (value or "")
        elif value is not None:
            choice[name] = value


def _add_delta(message: Json, delta: Json) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value or ():
                _add_call(message.setdefault("tool_calls", []), call)
        elif name == "role":
            message.setdefault("role", value)
        else:
            message[name] = _joined(message.get(name), value)


def _add_call(calls: list[Json], piece: Json) -> None:
    """A call's name comes at once, its arguments in pieces."""
    index = piece.get("index", len(calls))
    call = next((each for each in calls if each["index"] == index), None)
    if call is None:
        calls.append({**piece, "index": index})
        return
    function, more = call.setdefault("function", {}), piece.get("function") or {}
    function["arguments"] = (function.get("arguments") or "") + (more.get("arguments") or "")
    call.update({name: value for name, value in piece.items() if name != "function" and value is not None})


def _joined(said: Any, more: Any) -> Any:  # Any: JSON values
    """Texts and lists grow, mappings grow key by key, and anything else is what was said last."""
    if said is None or more is None:
        return more if said is None else said
    if isinstance(said, str) and isinstance(more, str):
        return said + more
    if isinstance(said, list) and isinstance(more, list):
        return said + more
    if isinstance(said, dict) and isinstance(more, dict):
        return said | {name: _joined(said.get(name), value) for name, value in more.items()}
    return more
