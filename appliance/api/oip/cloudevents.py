"""CloudEvents: requests are unwrapped, responses are wrapped in the mode of their request.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md; the type and
source of responses are those of KServe.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import msgspec

from appliance.core.errors import RequestError
from appliance.tensors.codec import decode

_STRUCTURED = "application/cloudevents+json"
_REQUIRED = ("id", "source", "type")


@dataclass(frozen=True, slots=True)
class Envelope:
    """The data of a request, and the mode in which its response is wrapped."""

    data: bytes
    mode: Literal["plain", "binary", "structured"] = "plain"


def unwrap(body: bytes, headers: Mapping[str, str]) -> Envelope:
    """Return the data of a request; a request without an event is its own data.

    Raises:
        RequestError: the event is invalid.
    """
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/cloudevents-batch+json":
        raise RequestError("A batch of events is not taken; send each by itself", status=415)
    if kind == _STRUCTURED:
        return Envelope(_structured(decode(body, dict[str, Any])), "structured")
    if "ce-specversion" in headers:
        _require({name: headers.get(f"ce-{name}") for name in ("specversion", *_REQUIRED)})
        return Envelope(body, "binary")
    return Envelope(body)


def wrap(response: bytes, mode: str, model: str) -> tuple[bytes, str, dict[str, str]]:
    """Return body, media type and headers of a response in the mode of its request."""
    if mode == "plain":
        return response, "application/json", {}
    attributes = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": f"io.kserve.inference.{model}",
        "type": "io.kserve.inference.response",
        "time": datetime.now(UTC).isoformat(),
    }
    if mode == "binary":
        return response, "application/json", {f"ce-{name}": value for name, value in attributes.items()}
    event = {**attributes, "datacontenttype": "application/json", "data": msgspec.Raw(response)}
    return msgspec.json.encode(event), _STRUCTURED, {}


def _structured(event: Mapping[str, Any]) -> bytes:  # Any: JSON values
    _require(event)
    if "data_base64" not in event:
        return msgspec.json.encode(event.get("data"))
    try:
        return base64.b64decode(event["data_base64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise RequestError("data_base64 of the event is not base64", param="data_base64") from error


def _require(attributes: Mapping[str, Any]) -> None:  # Any: JSON values
    for name in _REQUIRED:
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            raise RequestError(f"The event has no {name}; CloudEvents need one", param=name)
    if str(attributes.get("specversion")) not in {"1.0", "0.3"}:
        raise RequestError("The event's specversion must be 1.0", param="specversion")
