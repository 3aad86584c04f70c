"""YAML text as a draft: plain data of YAML 1.2 with the position of every key and value."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import Node
from ruamel.yaml.reader import ReaderError

from appliance.config.raw_config import RawConfig
from appliance.config.source_location import Diagnostic, Source, SourceLocation
from appliance.config.yaml_nodes import MAX_DEPTH, MAX_NODES, YamlConstructor
from appliance.core.errors import ConfigError
from appliance.core.suggestions import did_you_mean

# A ConfigMap of Kubernetes holds no more, so no file that is one of ours by intent does.
MAX_BYTES = 1024 * 1024

_ESCAPE = r'must be written as an escape, such as "\u0007" in double quotes'


def read(path: Path) -> tuple[RawConfig, list[Diagnostic]]:
    """The file as a draft, with the faults that leave the rest of it readable.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refusal(
            SourceLocation(Source.of_file(name, "")), f"cannot be read: {reason}; must be a YAML file"
        ) from None
    if len(raw) > MAX_BYTES:
        message = f"is larger than {MAX_BYTES} bytes; must be a config, which is far smaller"
        raise _refusal(SourceLocation(Source.of_file(name, "")), message)
    text = _decoded(name, raw)
    draft, faults = parse(text, Source.of_file(name, text))
    if isinstance(draft.data, dict):
        return replace(draft, files={path: sha256(raw).hexdigest()}), faults
    wrong = "is empty" if draft.data is None else "is not a mapping"
    raise _refusal(draft.place(()), f"{wrong}; must be a mapping that begins with the key models")


def parse(text: str, source: Source) -> tuple[RawConfig, list[Diagnostic]]:
    """The text of `source` as a draft, with the faults that leave the rest of it readable.

    Raises:
        ConfigError: the text is not YAML, or so deep or large that it cannot be meant.
    """
    try:
        _check_events(text, source)
        node: Node | None = _yaml().compose(text)
    except ReaderError as error:
        raise _refusal(_place_at(source, text, error.position), f"has an unprintable character; {_ESCAPE}") from None
    except MarkedYAMLError as error:
        raise _syntax_error(source, error) from None
    except (YAMLError, ValueError, OverflowError) as error:
        raise _refusal(source.place(0, 0), f"is not YAML: {error}; must be YAML 1.2") from None
    if node is None:
        return RawConfig(None, {(): source.place(0, 0)}, {}), []
    reader = YamlConstructor(source)
    data = reader.read(node)
    return RawConfig(data, reader.values, reader.keys), reader.faults


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    # An anchor may be set anew, says YAML 1.2.2 section 7.1; the warning would reach the log.
    yaml.composer.warn_double_anchors = False
    return yaml


def _decoded(name: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", "replace")
        source = Source.of_file(name, raw.decode("utf-8-sig", "replace"))
        place = _place_at(source, before, len(before))
        raise _refusal(place, "is not UTF-8 text; must be saved as UTF-8") from None


def _check_events(text: str, source: Source) -> None:
    """Refuse what composing would stumble over: it recurses, and says nothing useful about anchors."""
    expansion = _Expansion()
    documents = 0
    for count, event in enumerate(_yaml().parse(text)):
        place = source.place(event.start_mark.line, event.start_mark.column)
        if count > MAX_NODES:
            raise _refusal(place, f"more than {MAX_NODES} values; must be a config, which is far smaller")
        if isinstance(event, DocumentStartEvent):
            documents += 1
            _check_document(event, documents, place)
        elif isinstance(event, AliasEvent):
            _check_alias(str(event.anchor), expansion, place)
        elif isinstance(event, CollectionEndEvent):
            expansion.end()
        elif isinstance(event, NodeEvent):
            expansion.begin(event)
            if len(expansion.open) > MAX_DEPTH:
                raise _refusal(place, f"is nested deeper than {MAX_DEPTH} levels; must be flatter")


def _check_document(event: DocumentStartEvent, number: int, place: SourceLocation) -> None:
    if number > 1:
        raise _refusal(place, "a second document begins here; must be one document in one file")
    if event.version is not None and tuple(event.version) != (1, 2):
        raise _refusal(place, "asks for another version of YAML; must be YAML 1.2, the default")


def _check_alias(name: str, expansion: _Expansion, place: SourceLocation) -> None:
    if name in (anchor for anchor, _ in expansion.open):
        raise _refusal(place, f"*{name} stands inside its own anchor; must stand after it")
    if name not in expansion.sizes and place.is_secret:
        raise _refusal(place, "is an alias of no anchor; must be text, in quotes if it begins with *")
    if name not in expansion.sizes:
        remedy = did_you_mean(name, expansion.sizes) or f"must be set before it is used, with &{name}"
        raise _refusal(place, f"*{name} is an alias of no anchor; {remedy}")
    expansion.alias(name)
    if expansion.values > MAX_NODES:
        message = f"*{name} makes more than {MAX_NODES} values of the file, with the aliases in it; must be fewer"
        raise _refusal(place, message)


class _Expansion:
    """How many values a document has with its aliases followed, counted without following them."""

    def __init__(self) -> None:
        self.values = 0
        self.sizes: dict[str, int] = {}
        """Values of what each anchor stands for."""

        self.open: list[tuple[str | None, int]] = []
        """The anchors of the collections that have begun, and how many values there were before each."""

    def begin(self, event: NodeEvent) -> None:
        """Count a value, or the beginning of a collection."""
        anchor = None if event.anchor is None else str(event.anchor)
        if isinstance(event, CollectionStartEvent):
            self.open.append((anchor, self.values))
        elif anchor is not None:
            self.sizes[anchor] = 1
        self.values += 1

    def alias(self, name: str) -> None:
        """Count what an alias stands for."""
        self.values += self.sizes[name]

    def end(self) -> None:
        """The collection that began last is over."""
        anchor, before = self.open.pop()
        if anchor is not None:
            self.sizes[anchor] = self.values - before


def _syntax_error(source: Source, error: MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    place = source.place(mark.line, mark.column) if mark else source.place(0, 0)
    lines = source.lines or ()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if line[: mark.column if mark else 0].strip() == "" and "\t" in line[: len(line) - len(line.lstrip())]:
        return _refusal(place, "is indented with a tab; must be indented with spaces")
    context = f"{error.context} from line {error.context_mark.line + 1}" if error.context_mark else error.context
    parts = [part for part in (context, error.problem) if part]
    return _refusal(place, f"is not YAML: {', '.join(parts)}; must be YAML 1.2")


def _place_at(source: Source, text: str, offset: int) -> SourceLocation:
    lines = Source.of_file("", text[:offset]).lines or ("",)
    return source.place(len(lines) - 1, len(lines[-1]))


def _refusal(place: SourceLocation, message: str) -> ConfigError:
    return ConfigError([Diagnostic((), message, place).problem()])
