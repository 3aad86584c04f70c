"""Sources with a value of another type somewhere: an error that is told, or a config without it, and never a crash."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from convert.test_cases import CASES
from ruamel.yaml import YAML

from appliance.convert.source import convert
from appliance.core.errors import ConfigError

WRONG: tuple[Any, ...] = (3, "x", [3], {"a": 3}, None)


def _paths(node: Any) -> Iterator[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield (key,)
        yield from ((key, *rest) for rest in _paths(value))


@pytest.mark.parametrize("case", [case for case in CASES if case.suffix == ".yaml"], ids=lambda case: case.stem)
def test_a_value_of_another_type_is_no_crash(case: Any) -> None:
    """Every value of every source is replaced by a number, a text, a list, a mapping and null."""
    *_, whole = YAML(typ="safe").load_all(case.read_text())
    for path in _paths(whole):
        for wrong in WRONG:
            changed = copy.deepcopy(whole)
            node = changed
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = wrong
            text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in changed.items())
            try:
                with suppress(ConfigError):
                    convert(text, "source").text()
            except Exception as error:
                error.add_note(f"{path}: {wrong!r}")
                raise
