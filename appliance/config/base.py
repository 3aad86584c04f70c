"""Base of every part of the config: frozen, closed, and described by its own docstrings."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Keys with this prefix are ignored at any depth: a place for YAML anchors.
FREE_PREFIX = "x-"


class Change(StrEnum):
    """What a running server does about a new value of a key; it is part of the metadata of the key's field.

    It holds for all keys below, except where one of them has its own. The default is a restart, which is always safe.
    """

    HOT = "hot"
    """It is applied at once."""

    SWAP = "swap"
    """The model is replaced; the others continue."""

    RESTART = "restart"
    """It is applied at the next start."""


def without_free_keys(data: Any) -> Any:  # Any: what a file holds before it is checked
    """Return a mapping without the ignored keys; anything else is returned as it is."""
    if not isinstance(data, dict):
        return data
    return {key: value for key, value in data.items() if not str(key).startswith(FREE_PREFIX)}


def text_like(pattern: str, form: str, **constraints: Any) -> Any:  # Any: as pydantic's own `Field`
    """The field of a text with a pattern; `form` says it in words, for our errors and those of editors."""
    return Field(pattern=pattern, json_schema_extra={"patternErrorMessage": f"must be {form}"}, **constraints)


class BaseConfig(BaseModel):
    """One part of the config.

    The docstring under a field is its description in the schema, in editors and in the manual, so it is written once,
    there. `write_schemas` reads it: pydantic would read it at each import, for 0.1 s.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_free_keys(cls, data: Any) -> Any:  # Any: what a file holds before it is checked
        return without_free_keys(data)
