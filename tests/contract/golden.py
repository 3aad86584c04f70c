"""Golden files: what users saw when they were last written, and the comparison with what they see now."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "golden"

# Values that differ from run to run, by the key they stand under in JSON.
_VOLATILE = {
    **dict.fromkeys(("since", "loaded_at", "timestamp", "last_inference", "completed_at"), "TIME"),
    **dict.fromkeys(("seconds", "ttft", "duration", "eta_seconds", "queue_seconds", "first_token_seconds"), "SECONDS"),
    **dict.fromkeys(("fetching", "loading", "proving", "pending", "restarting"), "SECONDS"),
    **dict.fromkeys(("created", "version", "pid", "digest", "bytes_per_second"), "VOLATILE"),
}

# The same inside of texts.
_PATTERNS = (
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "HEX"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)?"), "TIME"),
    (re.compile(r"(sha256-)[\w+/]{43}="), r"\1HASH"),
    (re.compile(r'("created": ?)\d+'), r"\1TIME"),
    (re.compile(r"\b(127\.0\.0\.1|localhost)(:| port )\d{4,5}\b"), r"\1\2PORT"),
)


def masked(value: Any, literals: Mapping[str, str] | None = None) -> Any:  # Any: JSON values
    """Return JSON or text with every value that differs from run to run replaced by its name in capitals.

    `literals` are texts that only the test knows, such as its folder, and their names.
    """
    if isinstance(value, dict):
        return {
            masked(key, literals): _masked_value(key, each) if key in _VOLATILE else masked(each, literals)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(each, literals) for each in value]
    if isinstance(value, str):
        for text, name in (literals or {}).items():
            value = value.replace(text, name)
        for pattern, name in _PATTERNS:
            value = pattern.sub(name, value)
    return value


def _masked_value(key: str, value: Any) -> Any:  # Any: JSON values
    """The name in place of the value; null and objects tell something themselves."""
    return masked(value) if value is None or isinstance(value, dict | list) else _VOLATILE[key]


def _dumped(value: object, indent: str = "") -> str:
    """JSON in which whatever fits on a line is on one, so that a diff shows a whole case and little else."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + len(indent) <= 110 or not isinstance(value, dict | list) or not value:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(key)}: {_dumped(each, inner)}" for key, each in value.items()]
    else:
        parts = [f"{inner}{_dumped(each, inner)}" for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(parts), f"{indent}{closing}"])


class Golden:
    """Compares what users see with the golden files, or writes those anew."""

    def __init__(self, tests: str = "tests/contract", *, writes: bool) -> None:
        """`tests` is what to run to write those anew."""
        self._tests, self._writes = tests, writes

    def check(self, name: str, found: object) -> None:
        """Fail with a diff where `found` is not what the golden file has: a text, or anything JSON can hold."""
        file = FOLDER / name
        text = found if isinstance(found, str) else _dumped(found)
        text = text.rstrip("\n") + "\n"
        if self._writes:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        golden = file.read_text(encoding="utf-8") if file.exists() else ""
        if text != golden:
            lines = difflib.unified_diff(
                golden.splitlines(), text.splitlines(), f"golden/{name}", "what users see now", lineterm="", n=6
            )
            remedy = f"If they are meant to, run: just test {self._tests} --golden; look at the diff, and commit it."
            pytest.fail(
                "\n".join([f"Users see something else than golden/{name} says.", *lines, "", remedy]),
                pytrace=False,
            )
