"""The config that a conversion writes, and the list of what it could not keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from appliance.config.json_schema import schemas_at
from appliance.config.masking import mask
from appliance.config.models import NAME_PATTERN
from appliance.config.raw_config import DataPath, Diagnostic, dotted

_MODELINE = "yaml-language-server: $schema=appliance.schema.json"

# Defaults of vLLM that are not those of an engine here: spelled out, they say something.
_OTHER_DEFAULTS = frozenset({"use_tqdm_on_load", "max_loras", "max_lora_rank"})

# Longest text of a part that is not kept, and of its reason, in characters.
_LONGEST = 400

_MODEL_ORDER = ("name", "class", "aliases", "storage", "layout", "engine", "chat_template", "upstreams")
_ORDER = ("models", "metadata", "server")


# What stands for `${` and `}` of a reference until the config is written, whatever else has these characters.
_OPEN, _CLOSE = "\ue000", "\ue001"
UNKNOWN = "\ue002"
"""What marks a text that only a shell could know, such as `$(nproc)`."""

_VARIABLE = re.compile(f"{_OPEN}env:([^:{_CLOSE}]*)[^{_CLOSE}]*{_CLOSE}")


def env(name: str, *, default: str | None = None) -> str:
    """A reference to an environment variable, which may stand within a text."""
    return f"{_OPEN}env:{name}{'' if default is None else f':-{default}'}{_CLOSE}"


def is_reference(value: Any) -> bool:
    """Whether a value is a reference and nothing else."""
    return isinstance(value, str) and value.startswith(_OPEN) and value.find(_CLOSE) == len(value) - 1


def without_marks(text: str) -> str:
    """A source without the characters that have a meaning here, and none in any text."""
    return re.sub(f"[{_OPEN}{_CLOSE}{UNKNOWN}]", "", text)


@dataclass(frozen=True, slots=True)
class Unkept:
    """A part of the source that the config does not have."""

    source: str
    line: int
    what: str
    reason: str


@dataclass(slots=True)
class Draft:
    """The config of one source while it is made."""

    source: str
    data: CommentedMap = field(default_factory=CommentedMap)
    unkept: list[Unkept] = field(default_factory=list)
    _here: tuple[str, int] = ("", 0)
    """The file and the line of the source that are converted now: what is put or dropped belongs to them."""

    _origins: dict[tuple[int, str | int], tuple[str, int]] = field(default_factory=dict)
    """Where each key comes from, by the identity of its mapping, and each model, by its own."""

    def at(self, line: int, file: str = "") -> Self:
        """Go on with a line of the source, or of another `file` that the source names."""
        self._here = (file or self.source, line)
        return self

    def add_model(self, name: str, class_: str) -> CommentedMap:
        """Add an entry of `models:`, with the nearest name that clients may send here; `put` completes it."""
        model = CommentedMap({"name": escaped(to_name(name)), "class": class_})
        if to_name(name) != name:
            model.yaml_add_eol_comment(f"clients sent {name!r}, which is no name here", "name")
        self.data.setdefault("models", CommentedSeq()).append(model)
        self._origins[id(model), ""] = self._here
        return model

    def put(self, path: str | DataPath, value: Any, comment: str = "", *, into: CommentedMap | None = None) -> None:
        """Set the value at `path`, of the whole config or of the model `into`, with a comment on why it is so."""
        *above, key = path.split(".") if isinstance(path, str) else path
        node = self.data if into is None else into
        for each in above:
            node = node.setdefault(each, CommentedMap())
        node[key] = escaped(value)
        self._origins[id(node), key] = self._here
        if comment and isinstance(value, dict | list):
            node.yaml_set_comment_before_after_key(key, before=comment, indent=2 * len(above) + (4 if into else 0))
        elif comment:
            node.yaml_add_eol_comment(comment, key)

    def drop(self, what: str, reason: str) -> None:
        """List a part of the source that is not kept."""
        shown, reason = (_VARIABLE.sub(r"$\1", text).replace(UNKNOWN, "") for text in (what, reason))
        self.unkept.append(Unkept(*self._here, mask(_cut(shown), 0)[0], _cut(reason)))

    def _remove(self, path: DataPath) -> DataPath:
        """Remove the value at `path`, or the nearest one above it; return its path, and go to where it comes from."""
        node, trail = self.data, []
        for part in path:
            if not isinstance(node, dict | list) or part not in (node if isinstance(node, dict) else range(len(node))):
                break
            trail.append((node, part))
            node = node[part]
        keys = [key for each, part in trail for key in ((id(each), part), (id(each[part]), ""))]
        self._here = next((self._origins[key] for key in reversed(keys) if key in self._origins), (self.source, 1))
        if trail:
            above, part = trail[-1]
            del above[part]
        else:
            self.data.clear()
        return path[: len(trail)]

    def mend(self, errors_in: Callable[[str], Sequence[Diagnostic]]) -> None:
        """Remove what makes the config invalid, as `errors_in` finds it, and list it; no model may be left."""
        removed: DataPath = ()
        cause = ""
        # One at a time: what another one refers to may be gone with it.
        while "models" in self.data and (errors := errors_in(self.text())):
            path = errors[0].path
            # Without a part of it, a value of vLLM's would mean something else.
            gone = self._remove(path[:5] if path[2:4] == ("engine", "args") else path)
            if removed and removed[: len(gone)] == gone:
                # It cannot be without what was removed before.
                self.unkept.pop()
            else:
                cause = f"{dotted(path)}: {errors[0].message}"
            removed = gone
            self.drop(dotted(gone) or "models", cause.removeprefix(f"{dotted(gone)}: "))
            if not self.data.get("models"):
                self.data.pop("models", None)

    def text(self) -> str:
        """The config as a file: the keys in their usual order, and no defaults."""
        _remove_defaults(self.data, self.data, ())
        _sort(self.data, _ORDER)
        for model in self.data.get("models", ()):
            _sort(model, _MODEL_ORDER)
            if "args" in model.get("engine", ()):
                model["engine"].move_to_end("args")
        # The first line is for editors; `appliance schema --write .` writes the file that it names.
        self.data.yaml_set_start_comment(f"{_MODELINE}\nConverted from {self.source}.")
        yaml = YAML()
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.width = 120
        stream = StringIO()
        yaml.dump(self.data, stream)
        return stream.getvalue()


def _cut(text: str) -> str:
    """The text as it fits in a list; a value may be a whole script."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def to_name(name: str) -> str:
    """The name that is nearest to one that clients may not send here, such as a path."""
    if _OPEN in name or re.fullmatch(NAME_PATTERN, name):
        return name
    last = name.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.@:+-]|^\W+", "-", last).strip("-_") or "model"


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: what has another type is not there."""
    return value if isinstance(value, dict) else {}


def escaped(value: Any) -> Any:
    """The value for a config, in which `${` begins a reference."""
    if isinstance(value, str):
        return value.replace("${", "$${").replace(_OPEN, "${").replace(_CLOSE, "}")
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
