"""Base of every section of the config: frozen, closed, and described by its own docstrings."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

# Keys that begin so are the user's own, at any depth: a place for YAML anchors.
FREE_PREFIX = "x-"


class Change(StrEnum):
    """What a new value of a key asks of a server that runs; said once, among the metadata of the key's field.

    It holds for all keys below, down to one that says otherwise. Where none does it is a restart, so that a new key is
    safe until somebody makes it more.
    """

    HOT = "hot"
    """It is applied while we serve."""

    SWAP = "swap"
    """The model is brought anew, and the others go on."""

    RESTART = "restart"
    """It waits for the next start."""


def without_free_keys(data: Any) -> Any:  # Any: what a file holds before it is checked
    """A mapping without the user's own keys; anything else as it is."""
    if not isinstance(data, dict):
        return data
    return {key: value for key, value in data.items() if not str(key).startswith(FREE_PREFIX)}


class BaseConfig(BaseModel):
    """One part of the config.

    The docstring under a field is its description in the schema, in editors and in the manual,
    so it is written once, there.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_free_keys(cls, data: Any) -> Any:  # Any: what a file holds before it is checked
        return without_free_keys(data)
