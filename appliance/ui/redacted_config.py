"""The config as it may be shown."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from appliance.config import Config
from appliance.config.base import BaseConfig
from appliance.core.uri import redact


class RedactedConfig:
    """The config that is served, told with `***` for secrets, and URIs without passwords and query strings."""

    def __init__(self, config: Config, secrets: Iterable[str]) -> None:
        self.apply(config, secrets)

    def apply(self, config: Config, secrets: Iterable[str]) -> None:
        """Tell of another one from now on; `secrets` are texts that it must not show."""
        self._config = config
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def as_yaml(self) -> str:
        """What was set, as YAML; everything else has its default."""
        config = self._config
        # As people write them: what a model is called and what it is comes first.
        models = [{"name": each.name, "class": None, **_set(each)} for each in config.models]
        written = StringIO()
        yaml = YAML()
        yaml.width = 4096
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump(_shown({"models": models, **_set(config, "models")}, self._secrets), written)
        return written.getvalue()


def _set(model_config: BaseConfig, *besides: str) -> dict[str, Any]:  # Any: JSON values
    # A model that a Python program brings along is told by its class.
    return model_config.model_dump(
        mode="json",
        by_alias=True,
        exclude_unset=True,
        exclude=set(besides),
        warnings=False,
        fallback=lambda each: type(each).__qualname__,
    )


def _shown(value: Any, secrets: list[str]) -> Any:  # Any: JSON values
    if isinstance(value, dict):
        return {key: _shown(each, secrets) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each, secrets) for each in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, "***")
    return redact(value)
