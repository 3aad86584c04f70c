"""The frozen config from plain data, and pydantic's errors as faults of the draft."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from appliance.config.raw_config import RawConfig
from appliance.config.root import Config
from appliance.config.source_location import DataPath, Diagnostic

# What pydantic puts before the text of an error that a validator of ours raised is not part of the text.
_OURS = ("value_error", "assertion_error")


def construct(draft: RawConfig) -> tuple[Config | None, list[Diagnostic]]:
    """The config, or None and what is wrong with the draft."""
    try:
        return Config.model_validate(draft.data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        # What is missing the schema has told already, or has told as a misspelt key.
        return None, [_fault(draft, dict(detail)) for detail in details if detail["type"] != "missing"]


def _fault(draft: RawConfig, detail: dict[str, Any]) -> Diagnostic:  # Any: pydantic's own
    path = _path(draft, detail["loc"])
    if detail["type"] == "extra_forbidden":
        return draft.key_fault(path, "unknown key; must be left out")
    if detail["type"] in _OURS:
        message = str(detail["ctx"]["error"])
        for secret in sorted(draft.secrets(path), key=len, reverse=True):
            message = message.replace(secret, "***")
        return draft.fault(path, message)
    must = str(detail["msg"]).removeprefix("Input should ")
    return draft.fault(path, f"is {draft.quote(path)}; must {must}")


def _path(draft: RawConfig, location: tuple[int | str, ...]) -> DataPath:
    """The path in the data: pydantic's has its own steps between, for model classes and for members of unions."""
    value = draft.data
    path: DataPath = ()
    for part in location:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        path = (*path, part)
    return path
