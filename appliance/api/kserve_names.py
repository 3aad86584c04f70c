"""Models under the names that KServe's gateway has for them: ``publishers/NAMESPACE/models/MODEL``.

Source: https://github.com/kserve/kserve, LLMInferenceService (v1alpha2), spec.model.name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from appliance.core.model import MULTIPART_OPERATIONS, ModelRequest
from appliance.proxy.rewrite import RequestBody

HEADER = "x-gateway-model-name"
"""
The header in which a gateway says which model it was asked for.
"""


class KServeNames:
    """What the names in requests mean behind a gateway; `namespace` is None where there is none."""

    def __init__(self, namespace: str | None) -> None:
        self._prefix = None if namespace is None else prefix_of(namespace)

    def plain(self, name: str | None) -> str | None:
        """A name as the config has it."""
        return name.removeprefix(self._prefix) if name and self._prefix else name

    def meant(self, name: str | None, headers: Mapping[str, str]) -> str | None:
        """The config's name of the model that a request is for, which has this name in its body or none."""
        return name if self._prefix is None else self.plain(name or headers.get(HEADER))

    def named(self, call: ModelRequest, name: str | None) -> tuple[str | None, ModelRequest]:
        """
        The model a call is for, which has this name in its body or none, and the call with the config's name in it.
        """
        if self._prefix is None:
            return name, call
        plain = self.meant(name, call.headers)
        if plain is None or plain == name:
            return name, call
        content_type = call.headers.get("content-type", "") if call.operation in MULTIPART_OPERATIONS else ""
        return plain, replace(call, body=RequestBody.of(call.body, content_type).with_model(plain))


def prefix_of(namespace: str) -> str:
    """What comes before the name of each model in this namespace."""
    return f"publishers/{namespace}/models/"
