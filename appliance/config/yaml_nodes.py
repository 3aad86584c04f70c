"""Nodes of YAML as plain data: the values of YAML 1.2's core schema, aliases and merge keys followed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from appliance.config.source_location import DataPath, Diagnostic, Source, SourceLocation, is_unicode
from appliance.core.errors import ConfigError

MAX_DEPTH = 50
"""Deepest nesting that is read; a config has about ten levels, and JSON in it few more."""

MAX_NODES = 100_000
"""Most values that are read, aliases followed; ten aliases of ten aliases of ... are a file of gigabytes."""

_TAG = "tag:yaml.org,2002:"

# YAML 1.2's core schema has neither dates nor `=`: both are text.
_TEXT = {f"{_TAG}{name}" for name in ("str", "timestamp", "value", "merge")}

_MERGE = f"{_TAG}merge"

# Digits of the largest number that a config can mean: 64 bits, written in base 2, with a sign and `_`.
_MOST_DIGITS = 130
_TOO_LONG = "is a number of too many digits; must fit in 64 bits"


class YamlConstructor:
    """Reads one document; afterwards `values` and `keys` say where everything stands, and `faults` what is wrong."""

    def __init__(self, source: Source) -> None:
        self.values: dict[DataPath, SourceLocation] = {}
        self.keys: dict[DataPath, SourceLocation] = {}
        self.faults: list[Diagnostic] = []
        self._source = source
        self._left = MAX_NODES

    def read(self, node: Node, path: DataPath = ()) -> Any:  # Any: what a file holds before it is checked
        """The plain data of `node`, which stands at `path`.

        Raises:
            ConfigError: aliases make it too deep or too large.
        """
        self._count(node, len(path))
        self.values[path] = self._place(node)
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and node.tag in _TEXT | _CONVERSIONS.keys():
            return self._scalar(node, path)
        tag = "a tag" if self._place(node).is_secret else f"the tag {_short(str(node.tag))}"
        return self._fault(path, node, f"has {tag}; must be plain YAML, without tags")

    def _mapping(self, node: MappingNode, path: DataPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in self._pairs(node, path, len(path)):
            if key.value not in data:
                self.keys[*path, key.value] = self._place(key)
                data[key.value] = self.read(value, (*path, key.value))
                if value.start_mark.index == value.end_mark.index:
                    # Where nothing is written, YAML's own mark is at whatever comes next.
                    self.values[*path, key.value] = self._place(key)
        return data

    def _pairs(self, node: MappingNode, path: DataPath, depth: int) -> Iterator[tuple[ScalarNode, Node]]:
        """The pairs of a mapping, its own before the ones that its merge keys bring."""
        self._count(node, depth)
        seen: dict[str, Node] = {}
        merges = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merges.append(value)
            elif not isinstance(key, ScalarNode) or key.tag not in _TEXT:
                self._fault(path, key, "the key is not text; must be text, in quotes if it looks like anything else")
            elif key.value in seen:
                first = self._place(seen[key.value])
                where = "" if first.line is None else f" (first on line {first.line})"
                message, place = f"the key is here twice{where}; must be here once", self._place(key)
                self.faults.append(Diagnostic((*path, key.value), message, place, has_secret_key=place.is_secret))
            else:
                seen[key.value] = key
                yield key, value
        for value in merges:
            yield from self._merged(value, path, depth + 1)

    def _merged(self, node: Node, path: DataPath, depth: int) -> Iterator[tuple[ScalarNode, Node]]:
        mappings = node.value if isinstance(node, SequenceNode) else [node]
        for mapping in mappings:
            if isinstance(mapping, MappingNode):
                yield from self._pairs(mapping, path, depth)
            else:
                self._fault((*path, "<<"), mapping, "is not a mapping; must be an alias of one, or a list of such")

    def _scalar(self, node: ScalarNode, path: DataPath) -> Any:
        text = node.value
        if not is_unicode(text):
            return self._fault(path, node, "holds half a surrogate pair; must be whole characters")
        if node.tag in _TEXT:
            return text
        if len(text) > _MOST_DIGITS:
            return self._fault(path, node, _TOO_LONG)
        try:
            value = _CONVERSIONS[str(node.tag)](text)
        except ValueError:
            # The resolver's patterns are wider than the core schema's: `+_` is text.
            return text
        if isinstance(value, float) and not math.isfinite(value):
            return self._fault(path, node, f"is {text}; must be a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            return self._fault(path, node, _TOO_LONG)
        return value

    def _fault(self, path: DataPath, node: Node, message: str) -> None:
        self.faults.append(Diagnostic(path, message, self._place(node)))

    def _place(self, node: Node) -> SourceLocation:
        return self._source.place(node.start_mark.line, node.start_mark.column)

    def _count(self, node: Node, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            message = f"aliases make more than {MAX_NODES} values or {MAX_DEPTH} levels of it; must be fewer"
            raise ConfigError([Diagnostic((), message, self._place(node)).problem()])


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    body = digits.lstrip("+-")
    base = {"0b": 2, "0o": 8, "0x": 16}.get(body[:2], 10)
    return int(digits, base)


def _float(text: str) -> float:
    special = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
    return special.get(text.lower()) or float(text.replace("_", ""))


_CONVERSIONS: Mapping[str, Callable[[str], bool | int | float | None]] = {
    f"{_TAG}null": lambda _: None,
    f"{_TAG}bool": _boolean,
    f"{_TAG}int": _integer,
    f"{_TAG}float": _float,
}


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!") if tag.startswith(_TAG) else tag
