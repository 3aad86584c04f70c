"""The JSON Schema of vLLM's engine arguments, generated from the pinned vLLM."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, is_typeddict

from appliance.config.base import FREE_PREFIX
from appliance.config.engine import LOAD_FORMATS, OWNED
from appliance.config.json_schema import ENGINE_NAME, OPTIONS
from appliance.config.write_schemas import with_references, write_or_check
from appliance.engines.vllm import patches

# Arguments whose annotation allows more values than a config may have.
_CHOICES: Mapping[str, Sequence[str]] = {"load_format": LOAD_FORMATS}

# Beginnings of what vLLM's help says about its command line, after the field's own docstring.
_COMMAND_LINE = re.compile("Should either be a valid JSON string|Parse human-readable|API docs:")

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def generate() -> str:
    """The schema as its file holds it; needs vLLM."""
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    patches.enable_help_texts()
    # Options of the command line have help texts, and more choices.
    parser = make_arg_parser(FlexibleArgumentParser())
    options: dict[str, argparse.Action] = {each.dest: each for each in parser._actions if each.option_strings}
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
        OPTIONS: {name: _option(option) for name, option in sorted(options.items()) if name != "help"},
    }
    return json.dumps(with_references(schema), indent=2, ensure_ascii=False) + "\n"


def _property(field: Field[Any], option: argparse.Action | None) -> dict[str, Any]:
    help_text, options = (option.help or "", option.choices or ()) if option else ("", ())
    description = inspect.cleandoc(re.sub("%+", "%", _COMMAND_LINE.split(help_text)[0]))
    made = _combined([_of_type(kind) for kind in _members(field.type)])
    if made and field.default is None and "null" not in str(made):
        # Not every annotation of vLLM includes its default None.
        made = _combined([made, {"type": "null"}])
    choices = _CHOICES.get(field.name) or [choice for choice in options if choice is not None]
    if choices and "enum" not in made and "array" not in made["type"]:
        made["enum"] = [*choices, None] if "null" in made["type"] else list(choices)
    default = field.default.value if isinstance(field.default, Enum) else field.default
    # Other defaults, such as factories, may depend on the machine.
    is_constant = isinstance(default, str | int | float | bool) and default != ""
    if is_constant and default in made.get("enum", [default]):
        made["default"] = default
    return {"description": description or f"vLLM's {field.name}, of which vLLM says no more."} | made


def _option(option: argparse.Action) -> dict[str, Any]:
    """How `vllm serve` reads an option: the type of a value, `nargs` if it takes not just one, and other flags.

    Its own flag is its name with dashes, and with `--no-` if it is a boolean.
    """
    own = option.dest.replace("_", "-")
    made: dict[str, Any] = {"type": _type_on_command_line(option)}
    parse = cast("Callable[[str], Any]", option.type or str)
    aliases = [flag for flag in option.option_strings if flag not in (f"--{own}", f"--no-{own}")]
    made |= {"nargs": option.nargs} if option.nargs else {}
    made |= {"nullable": True} if option.nargs != 0 and _is_null(parse) else {}
    return made | ({"aliases": aliases} if aliases else {})


def _type_on_command_line(option: argparse.Action) -> str:
    """`boolean` for a flag without a value, else what vLLM makes of the text: found by trying some texts."""
    if option.nargs == 0:
        return "boolean"
    parse = cast("Callable[[str], Any]", option.type or str)
    for text, type_ in (("{}", "json"), ("1k", "size"), ("1", "integer"), ("1", "number"), ("1,2", "array")):
        made = _tried(parse, text)
        is_made = {
            "json": not isinstance(made, str | list | None),
            "size": made == 1000,
            "integer": type(made) is int,
            "number": type(made) is float,
            "array": isinstance(made, list),
        }
        if is_made[type_]:
            return "json or string" if type_ == "json" and _tried(parse, "a") == "a" else type_
    return "string"


def _is_null(parse: Callable[[str], Any]) -> bool:
    try:
        return parse("None") is None
    except (ValueError, argparse.ArgumentTypeError):
        return False


def _tried(parse: Callable[[str], Any], text: str) -> Any:
    """What vLLM makes of a text; None if it refuses it."""
    try:
        return parse(text)
    except (ValueError, argparse.ArgumentTypeError):
        return None


def _members(kind: Any) -> Iterator[Any]:  # Any: an annotation
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Annotated, Union, UnionType):
        for member in args[:1] if origin is Annotated else args:
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
        if issubclass(origin, int):
            return {"type": "integer", "enum": [int(member) for member in origin]}
        # vLLM looks them up by name, in any case. Its help has the values where they are the names in another case.
        names = ((name, str(member.value)) for name, member in origin.__members__.items())
        return {"type": "string", "enum": [value if value.upper() == name else name for name, value in names]}
    is_mapping = origin is dict or is_dataclass(origin) or is_typeddict(origin)
    # Other types cannot be written in YAML, such as classes.
    return {"type": "object"} if is_mapping else {}


def _combined(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one schema for all alternatives: a list of types if possible, else anyOf; empty if nothing is known."""
    schemas = [schema for schema in schemas if schema]
    names = {name for schema in schemas if set(schema) == {"type"} for name in _listed(schema["type"])}
    # An enumeration of texts beside any text restricts nothing.
    rest = [schema for schema in schemas if set(schema) != {"type"} and not ("enum" in schema and "string" in names)]
    if not rest:
        types = sorted(names, key=lambda name: (name == "null", name))
        return {"type": types[0] if len(types) == 1 else types} if types else {}
    if len(rest) > 1 or names - {"null"}:
        return {"anyOf": [*rest, *({"type": name} for name in sorted(names))]}
    if not names:
        return rest[0]
    made = rest[0] | {"type": [*_listed(rest[0]["type"]), "null"]}
    return made | {"enum": [*made["enum"], None]} if "enum" in made else made


def _listed(types: str | list[str]) -> list[str]:
    return [types] if isinstance(types, str) else types


if __name__ == "__main__":
    sys.exit(write_or_check({ENGINE_NAME: generate()}, sys.argv[1:]))
