"""References within a schema, and rules of a grammar: where they lead is known before anything compiles them.

Of those that lead nowhere vLLM says nothing: it answers with an empty text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeGuard
from urllib.parse import unquote

from appliance.core.errors import RequestError

# What these hold are values, whatever they look like.
_VALUES = frozenset({"const", "default", "enum", "examples"})

# What these hold are schemas by names of the client's own.
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})

# Where a structural tag holds a schema.
_TAGGED = ("json_schema", "schema")

_RULE = re.compile(r"^[ \t]*+([\w-]++)[ \t]*+::=", re.MULTILINE)

_LONGEST = 100


def require_references(schema: Any) -> None:  # Any: JSON values
    """Return where each `$ref` leads to something else than another `$ref`, sooner or later, and within the schema.

    Raises:
        RequestError: one does not.
    """
    followed: set[int] = set()
    for holder in _schemas(schema):
        if _is_reference(holder):
            followed |= _follow(schema, holder, followed)


def require_tagged_references(tag: Any) -> None:  # Any: JSON values
    """The same of each schema that is in a structural tag, all of which are apart.

    Raises:
        RequestError: one of their references leads nowhere.
    """
    rest = [tag]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            for name in _TAGGED:
                require_references(value.get(name))
            rest.extend(each for name, each in value.items() if name not in _TAGGED)
        elif isinstance(value, list):
            rest.extend(value)


def require_single_rules(grammar: str) -> None:
    """Return where a grammar defines each of its rules once.

    Raises:
        RequestError: it defines one several times.
    """
    for name, count in Counter(_RULE.findall(grammar)).items():
        if count > 1:
            raise _refusal(f"The grammar defines the rule {name[:_LONGEST]!r} {count} times; define it once")


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:  # Any: JSON values
    """The schema and all that are in it."""
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest.extend(value)
        elif isinstance(value, dict):
            yield value
            for name, each in value.items():
                if name in _NAMED and isinstance(each, dict):
                    rest.extend(each.values())
                elif name not in _VALUES:
                    rest.append(each)


def _is_reference(value: Any) -> TypeGuard[dict[str, Any]]:  # Any: JSON values
    return isinstance(value, dict) and isinstance(value.get("$ref"), str)


def _follow(schema: Any, holder: dict[str, Any], followed: set[int]) -> set[int]:  # Any: JSON values
    """Follow a reference until it leads to what is none, or was followed; the ids of what was on the way."""
    first, value = holder["$ref"], holder
    seen: set[int] = set()
    while _is_reference(value) and id(value) not in followed:
        seen.add(id(value))
        value = _target(schema, value["$ref"])
        if id(value) in seen:
            raise _refusal(f"The schema's $ref {first[:_LONGEST]!r} leads back to itself, and to no schema")
    return seen


def _target(schema: Any, reference: str) -> Any:  # Any: JSON values
    if reference != "#" and not reference.startswith("#/"):
        raise _refusal(
            f"The schema's $ref {reference[:_LONGEST]!r} leads outside of it; write what it stands for under $defs, "
            "and begin the reference with #/"
        )
    value = schema
    try:
        for part in unquote(reference).split("/")[1:]:
            value = value[int(part) if isinstance(value, list) else part.replace("~1", "/").replace("~0", "~")]
    except (LookupError, TypeError, ValueError) as error:
        raise _refusal(f"The schema's $ref {reference[:_LONGEST]!r} leads to nothing in it") from error
    return value


def _refusal(message: str) -> RequestError:
    return RequestError(message, param="response_format", code="schema_invalid")
