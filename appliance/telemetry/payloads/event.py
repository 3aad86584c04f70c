"""A payload as a CloudEvent in structured JSON.

Source: https://github.com/cloudevents/spec, cloudevents/spec.md and formats/json-format.md. Types and extensions are
those of KServe's logger (https://github.com/kserve/kserve, pkg/logger/worker.go); as there, the events of a request
and of its answer have one id, by which they are joined.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Side = Literal["request", "response"]

MEDIA_TYPE = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class PayloadEvent:
    """One body, and whose it is; `at` is a moment of the monotonic clock."""

    side: Side
    id: str
    at: float
    media_type: str
    body: bytes
    is_cut: bool
    facts: Mapping[str, Any]  # Any: JSON values
    """Further attributes: names of small letters and digits."""


def event(payload: PayloadEvent, source: str) -> bytes:
    """The event, in one line."""
    at = datetime.fromtimestamp(time.time() - time.monotonic() + payload.at, UTC)
    attributes = {
        "specversion": "1.0",
        "type": f"org.kubeflow.serving.inference.{payload.side}",
        "source": source,
        "id": payload.id,
        "time": at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": payload.media_type,
        **payload.facts,
        **({"truncated": True} if payload.is_cut else {}),
    }
    return msgspec.json.encode({**attributes, **_data(payload)})


def _data(payload: PayloadEvent) -> Mapping[str, object]:
    """JSON as it came, text as text, anything else in base64."""
    kind = payload.media_type.partition(";")[0].strip().lower()
    if not payload.is_cut and (kind == "application/json" or kind.endswith("+json")):
        try:
            # Decoded, for it may have line feeds, and an event is one line.
            return {"data": msgspec.json.decode(payload.body)}
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass
    if kind.startswith("text/") or kind.endswith("json"):
        try:
            # A character may have been cut in two.
            return {"data": payload.body.decode(errors="ignore" if payload.is_cut else "strict")}
        except UnicodeDecodeError:
            pass
    return {"data_base64": base64.b64encode(payload.body).decode()}
