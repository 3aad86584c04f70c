"""How large a schema, grammar or list of choices may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.config.engine import StructuredOutputsConfig
from appliance.core.errors import RequestError
from appliance.engines.vllm.structured_outputs import require_small

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _constraint(**kind: Any) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(**kind)


def _object(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"json": {"enum": [f"v{number}" for number in range(6_000)]}}, "6000 values of enumerations"),
        ({"json": json.dumps({"items": _object(501)})}, "501 properties"),
        ({"json": {"anyOf": [_object(300), _object(201)]}}, "501 properties"),
        ({"json": {"enum": ["x" * 200_000]}}, "bytes"),
        ({"json": {"enum": ["\u00e4" * 70_000]}}, "bytes"),
        ({"choice": ["a"] * 5_001}, "5001 choices"),
        ({"regex": "a" * 200_000}, "bytes"),
        ({"grammar": "a" * 200_000}, "bytes"),
        ({"structural_tag": json.dumps({"format": {"json_schema": _object(501)}})}, "501 properties"),
    ],
)
def test_what_takes_minutes_to_compile_is_refused(kind: dict[str, Any], words: str) -> None:
    """Everybody's structured answers would wait for it."""
    with pytest.raises(RequestError, match=words) as caught:
        require_small(_constraint(**kind), StructuredOutputsConfig())

    assert (caught.value.status, caught.value.code) == (400, "schema_too_large")


@pytest.mark.parametrize(
    "kind",
    [
        {"json": _object(500)},
        {"json": {"enum": list(range(5_000))}},
        {"choice": ["a", "b"]},
        {"json_object": True},
        {"json": "no JSON"},
    ],
)
def test_what_people_ask_for_is_taken(kind: dict[str, Any]) -> None:
    """So is what vLLM refuses with a better message."""
    require_small(_constraint(**kind), StructuredOutputsConfig())
    require_small(None, StructuredOutputsConfig())


def test_the_config_sets_the_sizes() -> None:
    """Whoever serves alone may take more, or less."""
    with pytest.raises(RequestError, match="takes 1 at most"):
        require_small(_constraint(json=_object(2)), StructuredOutputsConfig(max_properties=1))


DEEP = {"$defs": {"a/b": {"type": "string"}, "list": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"json": {"$ref": "#"}}, "'#' leads back to itself"),
        ({"json": '{"items": {"$ref": "#/items"}}'}, "'#/items' leads back to itself"),
        ({"json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}}, "leads back to itself"),
        ({"json": {"properties": {"a": {"$ref": "http://x/y.json"}}}}, "'http://x/y.json' leads outside"),
        ({"json": {"properties": {"enum": {"$ref": "other"}}}}, "'other' leads outside"),
        ({"json": {"items": {"$ref": "#/$defs/no"}, "$defs": {}}}, "'#/\\$defs/no' leads to nothing"),
        ({"structural_tag": json.dumps({"format": {"json_schema": {"$ref": "#"}}})}, "leads back to itself"),
        ({"grammar": 'root ::= "a"\nroot ::= "b"'}, "the rule 'root' 2 times"),
    ],
)
def test_a_schema_or_grammar_that_leads_nowhere_is_refused(kind: dict[str, Any], words: str) -> None:
    """The answer would be empty, with status 200."""
    with pytest.raises(RequestError, match=words) as caught:
        require_small(_constraint(**kind), StructuredOutputsConfig())

    assert (caught.value.status, caught.value.code) == (400, "schema_invalid")


@pytest.mark.parametrize(
    "kind",
    [
        {"json": {**DEEP, "properties": {"a": {"$ref": "#/$defs/a~1b"}, "b": {"$ref": "#/$defs/list"}}}},
        {"json": {"prefixItems": [{"type": "null"}], "items": {"$ref": "#/prefixItems/0"}}},
        {"json": {"properties": {"$ref": {"type": "string"}}, "default": {"$ref": "x"}, "enum": [{"$ref": "y"}]}},
        {"json": {"properties": {"children": {"items": {"$ref": "#"}}}}},
        {"json": {"$defs": {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(900)} | {"d900": {}}}},
        {"grammar": 'root ::= "a" | b\n# b ::= "c"\nb ::= "b ::= c"'},
    ],
)
def test_a_schema_may_refer_to_itself_and_its_parts(kind: dict[str, Any]) -> None:
    """Trees do, and so does what pydantic writes."""
    require_small(_constraint(**kind), StructuredOutputsConfig())
