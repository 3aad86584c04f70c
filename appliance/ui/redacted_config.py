"""The config without secrets."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from appliance.config import Config
from appliance.config.base import BaseConfig
from appliance.config.masking import MASK
from appliance.core.uri import redact

# What pydantic writes for a SecretStr.
_PYDANTICS_MASK = "**********"


class RedactedConfig:
    """The current config, with `***` for secrets, and URIs without passwords and query strings."""

    def __init__(self, config: Config, secrets: Iterable[str]) -> None:
        self.apply(config, secrets)

    def apply(self, config: Config, secrets: Iterable[str]) -> None:
        """Replace the config; `secrets` are texts that must not be shown."""
        self._config = config
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def as_yaml(self) -> str:
        """Return the settings of the config file as YAML, without defaults."""
        written = StringIO()
        yaml = YAML()
        yaml.width = 4096
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump(self.as_data(), written)
        return written.getvalue()

    def as_data(self, *, has_defaults: bool = False) -> Any:  # Any: JSON values
        """Return the settings of the config file, or with `has_defaults` of all keys that have a value."""
        config, dump = self._config, _with_defaults if has_defaults else _explicit
        # Name and class first, as people write them.
        models = [{"name": each.name, "class": None, **dump(each)} for each in config.models]
        return _redacted({"models": models, **dump(config, "models")}, self._secrets)


def _with_defaults(model_config: BaseConfig, *excluded: str) -> dict[str, Any]:  # Any: JSON values
    values = model_config.model_dump(mode="json", by_alias=True, exclude=set(excluded), warnings=False)
    merged: dict[str, Any] = _merged(values, _explicit(model_config, *excluded))
    return merged


def _merged(values: Any, explicit: Any) -> Any:  # Any: JSON values
    """The values without those that are null by default."""
    if isinstance(values, list):
        below = explicit if isinstance(explicit, list) else [None] * len(values)
        return [_merged(value, each) for value, each in zip(values, below, strict=True)]
    if not isinstance(values, dict):
        return values
    given = explicit if isinstance(explicit, dict) else {}
    return {key: _merged(value, given.get(key)) for key, value in values.items() if value is not None or key in given}


def _explicit(model_config: BaseConfig, *excluded: str) -> dict[str, Any]:  # Any: JSON values
    # A model of a Python program is shown by its class.
    return model_config.model_dump(
        mode="json",
        by_alias=True,
        exclude_unset=True,
        exclude=set(excluded),
        warnings=False,
        fallback=lambda each: type(each).__qualname__,
    )


def _redacted(value: Any, secrets: list[str]) -> Any:  # Any: JSON values
    if isinstance(value, dict):
        return {key: _redacted(each, secrets) for key, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each, secrets) for each in value]
    if not isinstance(value, str):
        return value
    if value == _PYDANTICS_MASK:
        return MASK
    for secret in secrets:
        value = value.replace(secret, MASK)
    return redact(value)
