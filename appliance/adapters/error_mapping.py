"""A target's refusal in our own words: status, message, and what of OpenAI's shape it has."""

from __future__ import annotations

import json
from typing import Any

from appliance.core.errors import RequestError

# A page of HTML says nothing that a client could use.
_LONGEST = 500


def refusal(status: int, body: bytes) -> RequestError:
    """The error to raise for an answer with a status of 400 or more, whatever shape its body has."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = body.decode("utf-8", "replace").strip()[:_LONGEST]
    return of_error(said, status)


def of_error(said: Any, status: int = 502) -> RequestError:  # Any: JSON values
    """
    The error for what a target said went wrong: OpenAI's shape, FastAPI's, the Open Inference Protocol's, or a text.
    """
    error = said.get("error", said) if isinstance(said, dict) else said
    fields = error if isinstance(error, dict) else {"message": error}
    message = next((fields[key] for key in ("message", "detail", "error") if fields.get(key)), None)
    if message is None or (isinstance(message, str) and message.lstrip().startswith("<")):
        message = f"the target answered {status}"
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    code = fields.get("code")
    # vLLM says the status here, older ones as a text; it is a word for programs or nothing.
    word = code if isinstance(code, str) and not code.isdecimal() else None
    param = fields.get("param")
    return RequestError(text, param=param if isinstance(param, str) else None, code=word, status=status)
