"""Keywords of a Python program, checked like the keys of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from appliance.config.base import BaseConfig
from appliance.core.errors import ConfigError, Problem
from appliance.core.suggestions import did_you_mean, known_names

Part = TypeVar("Part", bound=BaseConfig)


def checked(config: type[Part], given: Mapping[str, Any], source: str, path: str = "") -> Part:
    """The section that the keywords make; `source` and `path` say in an error where they stand.

    Raises:
        ConfigError: some of them are wrong; it names them all, and no value that may be a secret.
    """
    try:
        return config.model_validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise ConfigError([_fault(config, dict(detail), source, path) for detail in details]) from None


def _fault(config: type[BaseConfig], detail: Mapping[str, Any], source: str, path: str) -> Problem:
    words = [str(part) for part in (path, *detail["loc"]) if part != ""]
    message = str(detail["msg"])
    if detail["type"] == "extra_forbidden":
        known = list(config.model_fields)
        message = f"unknown key; {did_you_mean(words[-1], known) or known_names('keys', known)}"
    return Problem(source, None, None, ".".join(words), message)
