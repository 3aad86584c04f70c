"""The size of what an answer is held to: a JSON Schema, a grammar, a regular expression, choices."""

from __future__ import annotations

import json
from typing import Any

from appliance.config.engine import StructuredOutputsConfig
from appliance.core.errors import RequestError
from appliance.engines.vllm.schema_references import (
    require_references,
    require_single_rules,
    require_tagged_references,
)


def require_compilable(constraint: Any, limits: StructuredOutputsConfig) -> None:  # Any: vLLM's parameters
    """Return where vLLM compiles the constraint in a short time; it compiles those of all requests one after the other.

    Raises:
        RequestError: it is larger than the config allows, or part of it leads nowhere.
    """
    if constraint is None:
        return
    schema = constraint.json if constraint.json is not None else constraint.structural_tag
    texts = [_text(schema), constraint.regex or "", constraint.grammar or "", *(constraint.choice or ())]
    _require(sum(len(text.encode(errors="surrogatepass")) for text in texts), limits.max_bytes, "bytes")
    _require(len(constraint.choice or ()), limits.max_enum_values, "choices")
    properties, values = _sizes(_value(schema))
    _require(properties, limits.max_properties, "properties")
    _require(values, limits.max_enum_values, "values of enumerations")
    if constraint.json is not None:
        require_references(_value(schema))
    else:
        require_tagged_references(_value(schema))
    require_single_rules(constraint.grammar or "")


def _text(schema: Any) -> str:  # Any: JSON text, or the value
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)


def _value(schema: Any) -> Any:  # Any: JSON text, or the value
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError):
        # vLLM refuses it, and says why.
        return None


def _require(size: int, most: int, what: str) -> None:
    if size > most:
        raise RequestError(
            f"The schema, grammar or list of choices has {size} {what}; this model takes {most} at most.",
            param="response_format",
            code="schema_too_large",
        )


def _sizes(schema: Any) -> tuple[int, int]:  # Any: JSON values
    """How many properties and enumerated values there are, at any depth."""
    properties = values = 0
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if isinstance(value.get("properties"), dict):
                properties += len(value["properties"])
            if isinstance(value.get("enum"), list):
                values += len(value["enum"])
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return properties, values
