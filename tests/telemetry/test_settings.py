"""What is told of requests while the settings change, over a telemetry of the test's own."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from doubles import config
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from appliance.config.loader import digest
from appliance.config.telemetry import AccessLogConfig, LoggingConfig, PayloadLogConfig
from appliance.core.request_context import RequestContext
from appliance.telemetry.recorder import RequestRecorder

PLAIN = config()
QUIET = config(logging=LoggingConfig(access=AccessLogConfig(sample=0)))


def _record(request_id: str = "a", status: int = 200) -> RequestContext:
    record = RequestContext(
        request_id, method="POST", path="/v1/completions", protocol="openai", model="one", status=status
    )
    record.operation, record.route, record.ended = "completion", "/v1/completions", time.monotonic()
    return record


@pytest.mark.parametrize(("status", "lines"), [(200, 0), (400, 1), (499, 1), (503, 1)])
def test_an_error_is_logged_whatever_the_sample(status: int, lines: int) -> None:
    """A thinner log loses only what went well."""
    telemetry = RequestRecorder(QUIET)

    with capture_logs() as logged:
        telemetry.record(_record(status=status))

    assert len(logged) == lines


def test_a_stream_that_broke_is_an_error() -> None:
    """Though its status was good."""
    record = _record()
    record.late_status = 502

    with capture_logs() as logged:
        RequestRecorder(QUIET).record(record)

    assert [(each["status"], each["late_status"]) for each in logged] == [(200, 502)]


def test_new_settings_hold_for_the_next_request() -> None:
    """The digest of the config is that of the new one, and of it alone."""
    telemetry = RequestRecorder(QUIET)
    telemetry.apply(PLAIN)

    with capture_logs() as logged:
        telemetry.record(_record())

    (build,) = [
        each for family in REGISTRY.collect() if family.name == "appliance_build_info" for each in family.samples
    ]
    assert len(logged) == 1
    assert build.labels["config"] == digest(PLAIN) != digest(QUIET)


async def test_payloads_go_where_the_newest_settings_say(tmp_path: Path) -> None:
    """On, elsewhere, and off again."""
    telemetry = RequestRecorder(PLAIN)
    assert telemetry.capture() is None

    for name in ("one", "two"):
        payloads = PayloadLogConfig(sink=str(tmp_path / name), mode="request")
        telemetry.apply(config(logging=LoggingConfig(payloads=payloads)))
        copy = telemetry.capture()
        assert copy is not None
        copy.request.add(name.encode())
        telemetry.record(_record(name), copy)
        await telemetry.stop()
    telemetry.apply(PLAIN)

    assert telemetry.capture() is None
    for name in ("one", "two"):
        assert json.loads((tmp_path / name).read_text())["id"] == name
