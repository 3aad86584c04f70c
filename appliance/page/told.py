"""
The config as it may be shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from appliance.config import Config
from appliance.section import Section
from appliance.storage.uri import redact


def as_yaml(config: Config, secrets: Iterable[str]) -> str:
    """
    What was set, as YAML; `***` stands for secrets, and URIs go without passwords and query strings.
    """
    longest_first = sorted(filter(None, secrets), key=len, reverse=True)
    # As people write them: what a model is called and what it is comes first.
    models = [{"name": each.name, "class": None, **_set(each)} for each in config.models]
    data = {"models": models, **_set(config, "models")}
    written = StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_shown(data, longest_first), written)
    return written.getvalue()


def _set(section: Section, *besides: str) -> dict[str, Any]:  # Any: JSON values
    return section.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=set(besides))


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
