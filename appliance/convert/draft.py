"""The config that a conversion writes, and the list of what it could not keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from appliance.config.json_schema import schemas_at
from appliance.config.raw_config import DataPath

_MODELINE = "yaml-language-server: $schema=appliance.schema.json"

# Defaults of vLLM that are not those of an engine here: spelled out, they say something.
_OTHER_DEFAULTS = frozenset({"use_tqdm_on_load", "max_loras", "max_lora_rank"})

_MODEL_ORDER = ("name", "class", "aliases", "storage", "layout", "engine", "chat_template", "upstreams")
_ORDER = ("models", "metadata", "server")


class Reference(str):
    """A text that refers to a variable or a file, and is not escaped."""

    __slots__ = ()


def env(name: str, *, is_optional: bool = False) -> Reference:
    """A reference to an environment variable, which is empty where an optional one is not set."""
    return Reference(f"${{env:{name}:-}}" if is_optional else f"${{env:{name}}}")


@dataclass(frozen=True, slots=True)
class Unkept:
    """A part of the source that the config does not have."""

    line: int
    what: str
    reason: str


@dataclass(slots=True)
class Draft:
    """The config of one source while it is made."""

    source: str
    data: CommentedMap = field(default_factory=CommentedMap)
    unkept: list[Unkept] = field(default_factory=list)

    def add_model(self, name: str, class_: str) -> CommentedMap:
        """Add an entry of `models:`; `put` completes it."""
        model = CommentedMap({"name": name, "class": class_})
        self.data.setdefault("models", CommentedSeq()).append(model)
        return model

    def put(self, path: str | DataPath, value: Any, comment: str = "", *, into: CommentedMap | None = None) -> None:
        """Set the value at `path`, of the whole config or of the model `into`, with a comment on why it is so."""
        *above, key = path.split(".") if isinstance(path, str) else path
        node = self.data if into is None else into
        for each in above:
            node = node.setdefault(each, CommentedMap())
        node[key] = escaped(value)
        if comment and isinstance(value, dict | list):
            node.yaml_set_comment_before_after_key(key, before=comment, indent=2 * len(above) + (4 if into else 0))
        elif comment:
            node.yaml_add_eol_comment(comment, key)

    def drop(self, line: int, what: str, reason: str) -> None:
        """List a part of the source that is not kept."""
        self.unkept.append(Unkept(line, what, reason))

    def text(self) -> str:
        """The config as a file: the keys in their usual order, and no defaults."""
        _remove_defaults(self.data, self.data, ())
        _sort(self.data, _ORDER)
        for model in self.data.get("models", ()):
            _sort(model, _MODEL_ORDER)
            if "args" in model.get("engine", ()):
                model["engine"].move_to_end("args")
        # The first line is for editors; `appliance schema` prints the file that it names.
        self.data.yaml_set_start_comment(f"{_MODELINE}\nConverted from {self.source}.")
        yaml = YAML()
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.width = 120
        stream = StringIO()
        yaml.dump(self.data, stream)
        return stream.getvalue()


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: what has another type is not there."""
    return value if isinstance(value, dict) else {}


def escaped(value: Any) -> Any:
    """The value for a config, in which `${` begins a reference."""
    if isinstance(value, Reference):
        return str(value)
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return CommentedMap({key: escaped(each) for key, each in value.items()})
    return CommentedSeq([escaped(each) for each in value]) if isinstance(value, list | tuple) else value


def _remove_defaults(root: CommentedMap, node: Any, path: DataPath) -> None:
    """Remove the values that are the defaults of their keys, and then mappings that were emptied."""
    if isinstance(node, CommentedSeq):
        for index, item in enumerate(node):
            _remove_defaults(root, item, (*path, index))
    elif isinstance(node, CommentedMap) and path[-2:-1] != ("args",):
        for key in list(node):
            was_filled = bool(node[key])
            _remove_defaults(root, node[key], (*path, key))
            is_emptied = was_filled and node[key] == {}
            if is_emptied or (key not in _OTHER_DEFAULTS | node.ca.items.keys() and _is_default(root, (*path, key))):
                del node[key]


def _is_default(root: CommentedMap, path: DataPath) -> bool:
    value: Any = root
    for part in path:
        value = value[part]
    defaults = [schema["default"] for schema in schemas_at(root, path) if "default" in schema]
    return any(value == default and type(value) is type(default) for default in defaults)


def _sort(node: CommentedMap, order: Sequence[str]) -> None:
    """Put the known keys first, in their order."""
    rest = [key for key in node if key not in order]
    for key in [key for key in (*order, *rest) if key in node]:
        node.move_to_end(key)
