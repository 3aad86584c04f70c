"""Requests and responses as CloudEvents, with the type and the source of KServe's.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md. As in KServe, the
variables `CE_TYPE` and `CE_SOURCE` replace type and source, and `CE_MERGE=true` keeps the request's other attributes.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote
from uuid import uuid4

import msgspec

from appliance.core.errors import RequestError
from appliance.core.http import may_be_json
from appliance.tensors.codec import decode

Mode = Literal["plain", "binary", "structured"]
"""Where the attributes of an event are: it has none, in headers, in the body."""

Attributes = Mapping[str, Any]  # Any: JSON values

_STRUCTURED = "application/cloudevents+json"
_REQUIRED = ("id", "source", "type")

# They describe the data, or are made anew.
_NOT_KEPT = frozenset({"data", "data_base64", "datacontenttype", "id", "specversion", "time"})


@dataclass(frozen=True, slots=True)
class Event:
    """The data of a request, and the attributes of its event; a request without an event is its own data."""

    data: bytes
    content_type: str
    """That of the data."""
    mode: Mode = "plain"
    attributes: Attributes = field(default_factory=dict)


def unwrap(body: bytes, headers: Mapping[str, str]) -> Event:
    """Return the event of a request."""
    content_type = headers.get("content-type", "")
    kind = content_type.split(";")[0].strip().lower()
    if kind == "application/cloudevents-batch+json":
        raise RequestError("A batch of events is not taken; send each by itself", status=415)
    if kind == _STRUCTURED:
        attributes = decode(body, dict[str, Any])
        content_type = str(attributes.get("datacontenttype") or "application/json")
        return Event(_data(attributes, content_type), content_type, "structured", attributes)
    if "ce-specversion" in headers:
        attributes = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
        _require(attributes)
        return Event(body, content_type, "binary", attributes)
    return Event(body, content_type)


def wrap(response: bytes, content_type: str, event: Event, model: str) -> tuple[bytes, str, dict[str, str]]:
    """Return body, media type and headers of a response to an event, in the same mode."""
    if event.mode == "plain":
        return response, content_type, {}
    is_merged = os.environ.get("CE_MERGE", "").lower() == "true"
    attributes = {
        **({name: value for name, value in event.attributes.items() if name not in _NOT_KEPT} if is_merged else {}),
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": os.environ.get("CE_SOURCE", f"io.kserve.inference.{quote(model, safe='/@:+')}"),
        "type": os.environ.get("CE_TYPE", "io.kserve.inference.response"),
        "time": datetime.now(UTC).isoformat(),
    }
    if event.mode == "binary":
        return response, content_type, {f"ce-{name}": value for name, value in attributes.items()}
    data = {"data": msgspec.Raw(response)} if content_type == "application/json" else {"data_base64": response}
    return msgspec.json.encode({**attributes, "datacontenttype": content_type, **data}), _STRUCTURED, {}


def _data(event: Attributes, content_type: str) -> bytes:
    _require(event)
    if "data_base64" not in event:
        data = event.get("data")
        if isinstance(data, str) and not may_be_json(content_type):
            return data.encode()
        return msgspec.json.encode(data)
    try:
        return base64.b64decode(event["data_base64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise RequestError("data_base64 of the event is not base64", param="data_base64") from error


def _require(attributes: Attributes) -> None:
    for name in _REQUIRED:
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            raise RequestError(f"The event has no {name}; CloudEvents need one", param=name)
    if str(attributes.get("specversion")) not in {"1.0", "0.3"}:
        raise RequestError("The event's specversion must be 1.0", param="specversion")
