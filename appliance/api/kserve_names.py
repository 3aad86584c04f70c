"""Model names of KServe's gateway: ``publishers/NAMESPACE/models/MODEL``.

Source: https://github.com/kserve/kserve, LLMInferenceService (v1alpha2), spec.model.name.
"""

from __future__ import annotations

from collections.abc import Mapping

HEADER = "x-gateway-model-name"
"""The header with the model that the gateway was asked for."""


class KServeNames:
    """Translates model names; a `namespace` of None means that there is no gateway."""

    def __init__(self, namespace: str | None) -> None:
        self._prefix = None if namespace is None else prefix_of(namespace)

    def strip_prefix(self, name: str | None) -> str | None:
        """Return the name in the config."""
        return name.removeprefix(self._prefix) if name and self._prefix else name

    def requested_model(self, name: str | None, headers: Mapping[str, str]) -> str | None:
        """Return the requested model's name in the config; `name` is the one in the body, if any."""
        return name if self._prefix is None else self.strip_prefix(name or headers.get(HEADER))


def prefix_of(namespace: str) -> str:
    """Return the prefix of model names in a namespace."""
    return f"publishers/{namespace}/models/"
