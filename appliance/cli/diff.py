"""The command `diff`: compares two configs, and says how a running server would apply the changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from appliance.cli.options import FILE, format_option, load_config, overrides
from appliance.config import Difference, differences
from appliance.config.base import Change
from appliance.config.diff import ABSENT, keys_of
from appliance.config.raw_config import printable

# Longer values are cut; --format json has them whole.
_WIDTH = 40

_HELP = """
Compare two files, and say how a server applies the changes.

OLD and NEW are compared key by key; the server is one of OLD that reads NEW.

\b
hot      applied while serving: {hot}
swap     the model is loaded again while the others serve: every key of a model
restart  applied at the next start, with everything else: every other key

Models are compared by name; comments, order and x- keys do not count. Secrets are shown as ***.

Exit code 0 when nothing differs, 1 when something does, 2 when a file is wrong.
"""


@click.command(help=_HELP.format(hot=", ".join(keys_of(Change.HOT))))
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@format_option("How to print the differences.")
@overrides
def diff(old: Path, new: Path, format_: str, overrides: Sequence[str]) -> None:
    """Compare two files; the help of the command is generated from the keys."""
    found = differences(load_config(old, overrides), load_config(new, overrides))
    click.echo(json.dumps(as_json(found), indent=2) if format_ == "json" else as_text(found))
    sys.exit(1 if found else 0)


def as_json(found: Sequence[Difference]) -> Mapping[str, Any]:  # Any: JSON values
    """The differences as JSON; a value that one of the two files lacks is left out."""
    rows = []
    for each in found:
        values = {key: value for key, value in (("old", each.old), ("new", each.new)) if value is not ABSENT}
        rows.append({"path": each.path, **values, "change": each.change, "model": each.model})
    return {"outcome": outcome(found), "differences": rows}


def as_text(found: Sequence[Difference]) -> str:
    """The differences as a table, and a last line with the outcome."""
    if not found:
        return outcome(found)
    rows = [("PATH", "OLD", "NEW", "CHANGE")]
    rows += [(each.path, _cell(each.old), _cell(each.new), str(each.change)) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", outcome(found)])


def outcome(found: Sequence[Difference]) -> str:
    """How a running server would apply the differences, as one sentence."""
    waiting = [each.path for each in found if each.change is Change.RESTART]
    if waiting:
        return f"needs a restart, before which nothing is applied: {', '.join(waiting)}"
    outcomes: dict[str, dict[str, None]] = {}
    for each in found:
        if each.model is not None and each.change is Change.SWAP:
            is_whole = each.path == f"models.{each.model}"
            change = "removed" if each.new is ABSENT else "added" if each.old is ABSENT else "loaded again"
            outcomes.setdefault(change if is_whole else "loaded again", {})[each.model] = None
    if hot := [each.path for each in found if each.change is Change.HOT]:
        outcomes["applied at once"] = dict.fromkeys(hot)
    return "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in outcomes.items()) or "no difference"


def _cell(value: object) -> str:
    if value is ABSENT:
        return "-"
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
