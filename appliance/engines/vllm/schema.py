"""The JSON Schema of vLLM's engine arguments, generated from the pinned vLLM."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from appliance.config.base import FREE_PREFIX
from appliance.config.engine import LOAD_FORMATS, OWNED
from appliance.config.json_schema import ENGINE_NAME
from appliance.config.write_schemas import with_references, write_or_check
from appliance.engines.vllm import patches

# Arguments whose annotation allows more values than a config may have.
_CHOICES: Mapping[str, Sequence[str]] = {"load_format": LOAD_FORMATS}

# Beginnings of what vLLM's help says about its command line.
_COMMAND_LINE = ("Should either be a valid JSON string", "Parse human-readable", "API docs:")

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def generate() -> str:
    """The schema as its file holds it; needs vLLM."""
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs

    options = _options()
    properties = {
        field.name: _property(field, options.get(field.name))
        for field in fields(AsyncEngineArgs)
        if field.name not in OWNED and not field.name.startswith("_")
    }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ENGINE_NAME,
        "title": f"Engine arguments of vLLM {vllm.__version__}",
        "type": "object",
        "additionalProperties": False,
        "patternProperties": {f"^{FREE_PREFIX}": True},
        "properties": properties,
    }
    return json.dumps(with_references(schema), indent=2, ensure_ascii=False) + "\n"


def _options() -> dict[str, argparse.Action]:
    """Return the options of vLLM's command line by argument, which have help texts and more choices."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    patches.enable_help_texts()
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return {action.dest: action for action in parser._actions}


def _property(field: Field[Any], option: argparse.Action | None) -> dict[str, Any]:
    made = _combined([_of_type(kind) for kind in _members(field.type)])
    default = _default(field)
    if made and field.default is None and "null" not in str(made):
        # Not every annotation of vLLM includes its default None.
        made = _combined([made, {"type": "null"}])
    choices = _CHOICES.get(field.name) or _choices(option)
    if choices and "enum" not in made and "array" not in made["type"]:
        made["enum"] = [*choices, None] if "null" in made["type"] else list(choices)
    if default is not None and default in made.get("enum", [default]):
        made["default"] = default
    return {"description": _description(option, field.name)} | made


def _members(kind: Any) -> Iterator[Any]:  # Any: an annotation
    """Yield the members of a union, or the type itself."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _members(get_args(kind)[0])
    elif origin in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _of_type(kind: Any) -> dict[str, Any]:  # Any: an annotation
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin in _SCALARS:
        return {"type": _SCALARS[origin]}
    if origin is Literal:
        return {"type": _SCALARS[type(args[0])], "enum": list(args)}
    if origin in (list, set, tuple):
        items = _combined([_of_type(member) for member in _members(args[0])]) if args else {}
        return {"type": "array", "items": items}
    if isinstance(origin, type) and issubclass(origin, Enum):
        return _of_enum(origin)
    is_mapping = origin is dict or is_dataclass(origin) or is_typeddict(origin)
    # Other types cannot be written in YAML, such as classes.
    return {"type": "object"} if is_mapping else {}


def _of_enum(kind: type[Enum]) -> dict[str, Any]:
    if issubclass(kind, int):
        return {"type": "integer", "enum": [int(member) for member in kind]}
    # vLLM looks them up by name, in any case. Its help writes the values where they are the names in another case.
    names = [member.value if str(member.value).upper() == name else name for name, member in kind.__members__.items()]
    return {"type": "string", "enum": names}


def _combined(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one schema for all alternatives: a list of types if possible, else anyOf; empty if nothing is known."""
    schemas = [schema for schema in schemas if schema]
    names = {name for schema in schemas if set(schema) == {"type"} for name in _listed(schema["type"])}
    # An enumeration of texts beside any text restricts nothing.
    rest = [schema for schema in schemas if set(schema) != {"type"} and not ("enum" in schema and "string" in names)]
    if not rest:
        types = sorted(names, key=lambda name: (name == "null", name))
        return {"type": types[0] if len(types) == 1 else types} if types else {}
    if len(rest) == 1 and names <= {"null"}:
        return _nullable(rest[0]) if names else rest[0]
    return {"anyOf": [*rest, *({"type": name} for name in sorted(names))]}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    made = schema | {"type": [*_listed(schema["type"]), "null"]}
    return made | {"enum": [*schema["enum"], None]} if "enum" in schema else made


def _listed(types: str | list[str]) -> list[str]:
    return [types] if isinstance(types, str) else types


def _choices(option: argparse.Action | None) -> list[Any]:
    return [choice for choice in (option.choices if option and option.choices else ()) if choice is not None]


def _default(field: Field[Any]) -> Any:  # Any: JSON
    """Return a constant default; None for others, such as factories, which may depend on the machine."""
    default = field.default.value if isinstance(field.default, Enum) else field.default
    return default if isinstance(default, str | int | float | bool) and default != "" else None


def _description(option: argparse.Action | None, name: str) -> str:
    text = (option.help or "") if option else ""
    # The field's own docstring comes first, then how to write it on a command line.
    for mark in _COMMAND_LINE:
        text = text.partition(mark)[0]
    return inspect.cleandoc(re.sub("%+", "%", text)) or f"vLLM's {name}, of which vLLM says no more."


if __name__ == "__main__":
    sys.exit(write_or_check({ENGINE_NAME: generate()}, sys.argv[1:]))
