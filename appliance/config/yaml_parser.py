"""YAML 1.2 text as plain data with the location of every key and value.

ruamel.yaml's round-trip loader has locations too (`CommentedMap.lc`), but it stops at the first duplicate key or
unknown tag, and has none for merged keys. Here one pass over its nodes finds every error.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.parser import Parser
from ruamel.yaml.reader import ReaderError

from appliance.config.raw_config import (
    UNKNOWN,
    DataPath,
    Diagnostic,
    RawConfig,
    Source,
    SourceLocation,
    is_unicode,
    reason_of,
)
from appliance.core.errors import ConfigError
from appliance.core.suggestions import did_you_mean

STANDARD_INPUT = Path("-")
"""Stands for the config that is piped into this process."""

# A ConfigMap of Kubernetes holds no more.
MAX_BYTES = 1024 * 1024

# A config has about ten levels, and JSON in it a few more.
MAX_DEPTH = 50

# Counted with aliases followed: ten aliases of ten aliases of ... make gigabytes of a small file.
MAX_NODES = 100_000

# Digits of a 64-bit number in base 2, with a sign and `_`.
_MAX_DIGITS = 130
_TOO_LONG = "is a number of too many digits; must fit in 64 bits"

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"

# YAML 1.2's core schema has neither dates nor `=`: both are text.
_TEXT = {f"{_TAG}{name}" for name in ("str", "timestamp", "value", "merge")}
_SCALARS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float")}


def read(path: Path) -> RawConfig:
    """The file as raw config, with the errors that leave the rest of it readable.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    name = "standard input" if path == STANDARD_INPUT else str(path)
    whole = SourceLocation(Source.of_file(name, ""))
    try:
        content = _content(path)
    except (OSError, ValueError) as error:
        raise _error(whole, f"cannot be read: {reason_of(error)}; must be a YAML file") from None
    if len(content) > MAX_BYTES:
        raise _error(whole, f"is larger than {MAX_BYTES} bytes; must be a config, which is far smaller")
    text = _decode(name, content)
    raw = parse(text, Source.of_file(name, text))
    if isinstance(raw.data, dict):
        files = {} if path == STANDARD_INPUT else {path: sha256(content).hexdigest()}
        return replace(raw, files=files)
    fault = "is empty" if raw.data is None else "is not a mapping"
    raise _error(raw.location(()), f"{fault}; must be a mapping that begins with the key models")


def _content(path: Path) -> bytes:
    if path == STANDARD_INPUT:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def parse(text: str, source: Source) -> RawConfig:
    """The text of `source` as raw config, with the errors that leave the rest of it readable.

    Raises:
        ConfigError: the text is not YAML, or exceeds a limit.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Parser = partial(_LimitedParser, source=source)
    # An anchor may be set again (YAML 1.2.2, section 7.1); the warning would reach the log.
    yaml.composer.warn_double_anchors = False
    try:
        node: Node | None = yaml.compose(text)
    except ReaderError as error:
        location = _location_at(source, text, error.position)
        message = r'has an unprintable character; must be written as an escape, such as "\u0007" in double quotes'
        raise _error(location, message) from None
    except MarkedYAMLError as error:
        raise _syntax_error(source, error) from None
    except (YAMLError, ValueError, OverflowError) as error:
        raise _error(source.at(0, 0), f"is not YAML: {error}; must be YAML 1.2") from None
    if node is None:
        return RawConfig(None, {(): source.at(0, 0)}, {})
    constructor = _Constructor(source, yaml.constructor)
    data = constructor.construct(node)
    return RawConfig(data, constructor.locations, constructor.key_locations, errors=constructor.errors)


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" in content:
            # A line of it would say nothing.
            whole = SourceLocation(Source.of_file(name, ""))
            raise _error(whole, "is binary or UTF-16; must be YAML in UTF-8") from None
        before = content[: error.start].decode("utf-8-sig", "replace")
        source = Source.of_file(name, content.decode("utf-8-sig", "replace"))
        location = _location_at(source, before, len(before))
        raise _error(location, "is not UTF-8 text; must be saved as UTF-8") from None


def _error(location: SourceLocation, message: str) -> ConfigError:
    return ConfigError([Diagnostic((), message, location).problem()])


def _syntax_error(source: Source, error: MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    location = source.at(mark.line, mark.column) if mark else source.at(0, 0)
    line = source.lines[mark.line] if mark and mark.line < len(source.lines) else ""
    if line[: mark.column if mark else 0].strip() == "" and "\t" in line[: len(line) - len(line.lstrip())]:
        return _error(location, "is indented with a tab; must be indented with spaces")
    context = f"{error.context} from line {error.context_mark.line + 1}" if error.context_mark else error.context
    parts = [part for part in (context, error.problem) if part]
    return _error(location, f"is not YAML: {', '.join(parts)}; must be YAML 1.2")


def _location_at(source: Source, text: str, position: int) -> SourceLocation:
    before = Source.of_file("", text[:position]).lines
    return source.at(len(before) - 1, len(before[-1]))


@dataclass(slots=True)
class _Size:
    """The number of values and levels of a value with its aliases followed, counted without following them."""

    anchor: str | None
    values: int = 1
    depth: int = 0

    def add(self, item: _Size) -> None:
        """Count an entry."""
        self.values += item.values
        self.depth = max(self.depth, item.depth + 1)


class _LimitedParser(Parser):
    """The parser of ruamel.yaml with limits: refuses what the composer and the constructor could not cope with."""

    def __init__(self, loader: Any, source: Source) -> None:
        super().__init__(loader)
        self._source = source
        self._documents = 0
        self._open = [_Size(None)]
        """The document, and the collections that are not closed yet."""

        self._anchors: dict[str, _Size] = {}

    def get_event(self) -> Any:
        """The next event, which the composer consumes.

        Raises:
            ConfigError: it exceeds a limit.
        """
        event = super().get_event()
        location = self._source.at(event.start_mark.line, event.start_mark.column)
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            self._check_document(event, location)
        elif isinstance(event, AliasEvent):
            self._check_alias(str(event.anchor), location)
        elif isinstance(event, CollectionEndEvent):
            self._close(self._open.pop())
        elif isinstance(event, CollectionStartEvent):
            self._open.append(_Size(event.anchor))
            if len(self._open) - 1 > MAX_DEPTH:
                raise _error(location, f"is nested deeper than {MAX_DEPTH} levels; must be flatter")
        elif isinstance(event, ScalarEvent):
            self._close(_Size(event.anchor))
        if self._values > MAX_NODES:
            raise _error(location, f"more than {MAX_NODES} values; must be a config, which is far smaller")
        return event

    @property
    def _values(self) -> int:
        return sum(size.values for size in self._open)

    def _close(self, size: _Size) -> None:
        self._open[-1].add(size)
        if size.anchor is not None:
            self._anchors[size.anchor] = size

    def _check_document(self, event: DocumentStartEvent, location: SourceLocation) -> None:
        if self._documents > 1:
            raise _error(location, "a second document begins here; must be one document in one file")
        if event.version is not None and tuple(event.version) != (1, 2):
            raise _error(location, "asks for another version of YAML; must be YAML 1.2, the default")

    def _check_alias(self, name: str, location: SourceLocation) -> None:
        if name in (size.anchor for size in self._open):
            raise _error(location, f"*{name} stands inside its own anchor; must stand after it")
        if name not in self._anchors and location.is_secret:
            raise _error(location, "is an alias of no anchor; must be text, in quotes if it begins with *")
        if name not in self._anchors:
            remedy = did_you_mean(name, self._anchors) or f"must be set before it is used, with &{name}"
            raise _error(location, f"*{name} is an alias of no anchor; {remedy}")
        self._open[-1].add(self._anchors[name])
        if self._values > MAX_NODES:
            message = f"*{name} makes more than {MAX_NODES} values of the file, with the aliases in it; must be fewer"
            raise _error(location, message)
        if len(self._open) - 1 + self._anchors[name].depth > MAX_DEPTH:
            message = f"*{name} nests the file deeper than {MAX_DEPTH} levels, with the aliases in it; must be flatter"
            raise _error(location, message)


class _Constructor:
    """Builds the data of one document; records where everything stands, and every error."""

    def __init__(self, source: Source, scalars: SafeConstructor) -> None:
        self.locations: dict[DataPath, SourceLocation] = {}
        self.key_locations: dict[DataPath, SourceLocation] = {}
        self.errors: list[Diagnostic] = []
        self._source = source
        self._scalars = scalars

    def construct(self, node: Node, path: DataPath = ()) -> Any:  # Any: what a file holds before it is checked
        """The data of `node`, which stands at `path`; UNKNOWN for a node with an error."""
        location = self.locations[path] = self._location(node)
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.construct(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and node.tag in _TEXT | _SCALARS:
            return self._scalar(node, path)
        tag = "a tag" if location.is_secret else f"the tag {str(node.tag).replace(_TAG, '!!')}"
        return self._report(path, node, f"has {tag}; must be plain YAML, without tags")

    def _mapping(self, node: MappingNode, path: DataPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in self._pairs(node, path):
            if key.value not in data:
                below = (*path, key.value)
                self.key_locations[below] = self._location(key)
                data[key.value] = self.construct(value, below)
                if value.start_mark.index == value.end_mark.index:
                    # The mark of an empty value is that of whatever follows.
                    self.locations[below] = self._location(key)
        return data

    def _pairs(self, node: MappingNode, path: DataPath) -> Iterator[tuple[ScalarNode, Node]]:
        """The pairs of a mapping, its own before those of its merge keys."""
        seen: dict[str, Node] = {}
        merges = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merges.append(value)
            elif not isinstance(key, ScalarNode) or key.tag not in _TEXT:
                self._report(path, key, "the key is not text; must be text, in quotes if it looks like anything else")
            elif key.value in seen:
                first = self._location(seen[key.value])
                where = f" (first on line {first.line})" if first.line else ""
                message, location = f"the key is here twice{where}; must be here once", self._location(key)
                diagnostic = Diagnostic((*path, key.value), message, location, has_secret_key=location.is_secret)
                self.errors.append(diagnostic)
            else:
                seen[key.value] = key
                yield key, value
        for value in merges:
            mappings = value.value if isinstance(value, SequenceNode) else [value]
            other = next((each for each in mappings if not isinstance(each, MappingNode)), None)
            if other is not None:
                self._report((*path, "<<"), other, "is not a mapping; must be an alias of one, or a list of such")
                continue
            for mapping in mappings:
                yield from self._pairs(mapping, path)

    def _scalar(self, node: ScalarNode, path: DataPath) -> Any:
        text = node.value
        if not is_unicode(text):
            return self._report(path, node, "holds half a surrogate pair; must be whole characters")
        if node.tag in _TEXT:
            return text
        if len(text) > _MAX_DIGITS:
            return self._report(path, node, _TOO_LONG)
        try:
            value = self._scalars.construct_object(node)
        except (ValueError, KeyError, IndexError):
            # The resolver's patterns are wider than the core schema's: `+_` is text.
            return text
        if isinstance(value, float) and not math.isfinite(value):
            return self._report(path, node, f"is {text}; must be a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            return self._report(path, node, _TOO_LONG)
        return value

    def _report(self, path: DataPath, node: Node, message: str) -> Any:
        self.errors.append(Diagnostic(path, message, self._location(node)))
        return UNKNOWN

    def _location(self, node: Node) -> SourceLocation:
        return self._source.at(node.start_mark.line, node.start_mark.column)
