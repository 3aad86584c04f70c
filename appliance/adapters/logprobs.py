"""Log probabilities of a completion as those of a chat completion.

Source: https://platform.openai.com/docs/api-reference/chat/object (`logprobs.content`) and
https://platform.openai.com/docs/api-reference/completions/object (`logprobs`).
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

from appliance.adapters.messages import Json

# OpenAI's word for a log probability too small to tell.
_LEAST = -9999.0

# How OpenAI writes a token that is part of a character, e.g. `bytes:\xe2\x80`.
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


def chat_logprobs(logprobs: Any, top: int) -> Json | None:  # Any: JSON values
    """The log probabilities of one choice, or of one piece of it, with at most `top` alternatives a token."""
    if not isinstance(logprobs, dict) or not isinstance(logprobs.get("tokens"), list):
        return None
    tokens = logprobs["tokens"]
    chosen = (logprobs.get("token_logprobs") or [])[: len(tokens)]
    others = (logprobs.get("top_logprobs") or [])[: len(tokens)]
    rows = zip_longest(tokens, chosen, others)
    return {"content": [_token(*row) | {"top_logprobs": _best(row[2], top)} for row in rows], "refusal": None}


def _token(token: Any, logprob: Any, _others: Any = None) -> Json:  # Any: JSON values
    text = str(token)
    return {"token": text, "logprob": _LEAST if logprob is None else logprob, "bytes": _bytes(text)}


def _best(others: Any, top: int) -> list[Json]:  # Any: JSON values
    """The likeliest first; a completion may list the chosen token as one more."""
    if not isinstance(others, dict):
        return []
    made = [_token(token, logprob) for token, logprob in others.items()]
    return sorted(made, key=lambda each: -float(each["logprob"]))[:top]


def _bytes(token: str) -> list[int] | None:
    """The token in UTF-8, or None where it is a piece of a character that nobody can tell any more."""
    if found := _BYTES.fullmatch(token):
        return list(bytes.fromhex(found[1].replace("\\x", "")))
    return None if "\ufffd" in token else list(token.encode("utf-8", "replace"))
