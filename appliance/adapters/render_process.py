"""The child process of `Renderer`: reads a template and its variables, writes what it renders to."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import IO, Any

import msgspec

from appliance.adapters.jinja import ChatTemplate, JsonTemplate
from appliance.adapters.renderer import LENGTH_BYTES, MAX_OUTPUT_BYTES, RenderError
from appliance.core.child_process import end_with_parent, limit_resources

# Address space of the process, of which Python and Jinja take a tenth; a body of 32 MiB needs less than a half.
_MEMORY_BYTES = 1024 * 1024 * 1024


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    parent = os.getppid()
    end_with_parent(parent)
    limit_resources(memory_bytes=_MEMORY_BYTES)
    _write({"text": "ready"})
    # The parent may have ended before the kernel knew that we end with it.
    while os.getppid() == parent and (head := sys.stdin.buffer.read(LENGTH_BYTES)):
        _write(_answer(sys.stdin.buffer, int.from_bytes(head, "big")))


def _answer(pipe: IO[bytes], length: int) -> dict[str, str]:
    try:
        request = msgspec.json.decode(pipe.read(length))
        text = _compiled(request["kind"], request["source"]).render_here(request["variables"])
    except RenderError as error:
        return {"error": error.kind, "message": str(error)}
    except MemoryError:
        return {"error": "broken", "message": "it takes too much memory"}
    if len(text) > MAX_OUTPUT_BYTES:
        return {"error": "broken", "message": f"it gives more than {MAX_OUTPUT_BYTES} characters"}
    return {"text": text}


@lru_cache(maxsize=16)
def _compiled(kind: str, source: str) -> ChatTemplate | JsonTemplate:
    return ChatTemplate(source) if kind == "chat" else JsonTemplate(source)


def _write(reply: dict[str, Any]) -> None:
    try:
        message = msgspec.json.encode(reply)
    except (MemoryError, ValueError) as error:
        # Half of a surrogate pair, which no text over HTTP can hold.
        why = "it takes too much memory" if isinstance(error, MemoryError) else "its text cannot be written as UTF-8"
        message = msgspec.json.encode({"error": "broken", "message": why})
    sys.stdout.buffer.write(len(message).to_bytes(LENGTH_BYTES, "big") + message)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
