"""The config without secrets."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from appliance.config import Config
from appliance.config.base import BaseConfig
from appliance.core.uri import redact


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
        config = self._config
        # Name and class first, as people write them.
        models = [{"name": each.name, "class": None, **_explicit(each)} for each in config.models]
        written = StringIO()
        yaml = YAML()
        yaml.width = 4096
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump(_redacted({"models": models, **_explicit(config, "models")}, self._secrets), written)
        return written.getvalue()


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
    for secret in secrets:
        value = value.replace(secret, "***")
    return redact(value)
