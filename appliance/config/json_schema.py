"""The committed JSON Schemas of the config, as they are published and as values are validated."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT_NAME = "appliance.schema.json"
ENGINE_NAME = "vllm-engine.schema.json"

REFER = {"$ref": "#/$defs/Reference"}
"""In the published schemas a choice beside the schema of each value: a reference such as `${env:NAME}`."""


def directory() -> Path:
    """Where the committed schemas are: in the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "schemas"
    return installed if installed.is_dir() else package.parent / "schemas"


def schema_of(class_name: str | None = None) -> dict[str, Any]:  # Any: JSON
    """The published schema of the whole config, or of one model class."""
    return _read(ROOT_NAME if class_name is None else f"{class_name}.schema.json")


@cache
def validation_schema() -> dict[str, Any]:  # Any: JSON
    """The schema of the whole config once its references are resolved."""
    return dict(without_references(_read(ROOT_NAME)))


@cache
def engine_schema() -> dict[str, Any]:  # Any: JSON
    """The schema of vLLM's engine arguments once references are resolved."""
    return dict(without_references(_read(ENGINE_NAME)))


def _read(name: str) -> dict[str, Any]:  # Any: JSON
    schema: dict[str, Any] = json.loads((directory() / name).read_text(encoding="utf-8"))
    return schema


def without_references(schema: Any) -> Any:  # Any: JSON
    """The published schema without references as choices."""
    if isinstance(schema, list):
        return [without_references(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {keyword: without_references(value) for keyword, value in schema.items()}
    if REFER not in made.get("anyOf", ()):
        return made
    choices = [choice for choice in made.pop("anyOf") if choice != REFER]
    return made | (choices[0] if len(choices) == 1 else {"anyOf": choices})
