"""What differs between two configs, for people and for machines, and what a server that runs would make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.config import Difference
from appliance.config.base import Change
from appliance.config.diff import ABSENT, keys_of
from appliance.config.source_location import printable

# A value that is longer is cut; --format json has all of it.
_WIDTH = 40

_HELP = """
Compare the files OLD and NEW key by key, and say what a server of OLD makes of NEW.

\b
hot      applied while it serves: {hot}
swap     a model is brought anew, and the others go on: every key of a model
restart  waits for the next start, and everything else with it: every other key

Models are compared by name; comments, order and x- keys are no difference. Secrets are shown as ***.

Exit code 0 when nothing differs, 1 when something does, 2 when a file is wrong.
"""


def diff_help() -> str:
    """What `appliance diff --help` says."""
    return _HELP.format(hot=", ".join(keys_of(Change.HOT)))


def as_json(found: Sequence[Difference]) -> Mapping[str, Any]:  # Any: JSON values
    """The differences as plain data; a value that one of the two lacks is left out."""
    return {"outcome": outcome(found), "differences": [_row(each) for each in found]}


def as_text(found: Sequence[Difference]) -> str:
    """A table, and a last line with what would happen."""
    if not found:
        return outcome(found)
    rows = [("PATH", "OLD", "NEW", "CHANGE")]
    rows += [(each.path, _cell(each.old), _cell(each.new), str(each.change)) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", outcome(found)])


def outcome(found: Sequence[Difference]) -> str:
    """What a server that runs makes of these differences, as one sentence."""
    waiting = [each.path for each in found if each.change is Change.RESTART]
    if waiting:
        return f"needs a restart, before which nothing is applied: {', '.join(waiting)}"
    said = _models(found)
    hot = [each.path for each in found if each.change is Change.HOT]
    if hot:
        said["applied at once"] = hot
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in said.items()) or "no difference"


def _models(found: Sequence[Difference]) -> dict[str, Sequence[str]]:
    models: dict[str, dict[str, None]] = {}
    for each in found:
        if each.model is not None:
            is_whole = each.path == f"models.{each.model}"
            what = "removed" if each.new is ABSENT else "added" if each.old is ABSENT else "brought anew"
            models.setdefault(what if is_whole else "brought anew", {})[each.model] = None
    return {what: list(names) for what, names in models.items()}


def _row(each: Difference) -> Mapping[str, Any]:  # Any: JSON values
    values = {key: value for key, value in (("old", each.old), ("new", each.new)) if value is not ABSENT}
    return {"path": each.path, **values, "change": each.change, "model": each.model}


def _cell(value: object) -> str:
    if value is ABSENT:
        return "-"
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
