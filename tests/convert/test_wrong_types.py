"""Sources with a wrong value somewhere: an error that is told, or a valid config without it, and never a crash."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from convert.test_cases import CASES
from ruamel.yaml import YAML

from appliance.cli.options import VALIDATORS
from appliance.config.loader import errors_in
from appliance.convert.source import convert
from appliance.core.errors import ConfigError

WRONG: tuple[Any, ...] = (-3, "x y", [3], {"a": 3}, None)


def _paths(node: Any) -> Iterator[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield (key,)
        yield from ((key, *rest) for rest in _paths(value))


@pytest.mark.parametrize("each", [len(WRONG), pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", [case for case in CASES if case.suffix == ".yaml"], ids=lambda case: case.stem)
def test_a_value_of_another_type_is_no_crash(case: Path, each: int) -> None:
    """Every value of every source is replaced by a number, a text, a list, a mapping and null, or by one of these."""
    *_, whole = YAML(typ="safe").load_all(case.read_text())
    changes = [(path, wrong) for path in _paths(whole) for wrong in WRONG]
    # One more than their number goes through all of them.
    for path, wrong in changes[:: each + 1 if each > 1 else 1]:
        changed = copy.deepcopy(whole)
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = wrong
        text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in changed.items())
        try:
            with suppress(ConfigError):
                assert errors_in(convert(text, "source", VALIDATORS).text(), VALIDATORS) == []
        except Exception as error:
            error.add_note(f"{path}: {wrong!r}")
            raise
