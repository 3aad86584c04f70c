"""When a server that a bench has started answers."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from pathlib import Path

# How often it is asked; what a start takes is told no finer.
_PAUSE_SECONDS = 0.1

_ANSWER_SECONDS = 60.0
_MOST_CHARACTERS = 3000


def until_answering(
    port: int, model: str, process: subprocess.Popen[bytes], log: Path, seconds: float, times: int = 1
) -> None:
    """Wait for its first answer to a chat, or so many in a row, of which each front end gives some; up to some seconds.

    Raises:
        OSError: there is none, with the end of its log.
    """
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}).encode()
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    deadline = time.monotonic() + seconds
    left = times
    while process.poll() is None and time.monotonic() < deadline:
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS):
                left -= 1
        except OSError:
            left = times
            time.sleep(_PAUSE_SECONDS)
        if not left:
            return
    raise OSError(f"it never answered; the end of its log:\n{log.read_text(errors='replace')[-_MOST_CHARACTERS:]}")
