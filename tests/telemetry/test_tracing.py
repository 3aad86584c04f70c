"""Traces as a collector of OpenTelemetry gets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import collector
import pytest
from collector import Span
from proxy_process import CHAT_PATH, CHAT_REQUEST, ProxyProcess, write_config
from server_process import wait_until
from upstreams import Upstream, error, event, stream

pytestmark = pytest.mark.contract

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def traced(upstream_server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """An appliance that traces everything; its upstream is its collector too."""
    folder = tmp_path_factory.mktemp("traced")
    tracing = {
        "endpoint": upstream_server.origin,
        "service_name": "shop-talk",
        "sample": 0,
        "headers": {"x-tenant": "shop"},
    }
    server = ProxyProcess(
        write_config(folder, upstream_server, {"tracing": tracing}), folder / "server.log"
    ).wait_until_ready(60)
    yield server
    assert server.stop() == 0, server.log_tail()


def _request(upstream: Upstream, request_id: str) -> tuple[Span, dict[str, Span]]:
    """The span of a request, once it is there, and those below it by name."""

    def found() -> list[Span]:
        return [each for each in collector.spans(upstream) if each.attributes.get("appliance.request_id") == request_id]

    wait_until(lambda: bool(found()), 20)
    (span,) = found()
    return span, {each.name: each for each in collector.spans(upstream) if each.trace == span.trace and each != span}


def _sampled(request_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1", "X-Request-Id": request_id}


def test_a_request_is_a_span_in_its_callers_trace(traced: ProxyProcess, plain: Upstream) -> None:
    """
    Named by its route, with the words of HTTP and of generative AI, and below it admission, engine and first token.
    """
    collector.listen(plain)
    last = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})
    plain.on(CHAT_PATH, stream(event({"choices": []}), 0.2, last, event("[DONE]")))

    traced.stream(CHAT_PATH, CHAT_REQUEST | {"stream": True}, _sampled("spans"))

    span, below = _request(plain, "spans")
    assert (span.name, span.service) == (f"POST {CHAT_PATH}", "shop-talk")
    assert (span.trace, span.parent) == (TRACE, CALLER)
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.request.model"] == "talk"
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["http.response.status_code"] == 200
    assert below.keys() == {"admission", "engine", "first token"}
    assert {below["admission"].parent, below["engine"].parent} == {span.id}
    assert below["first token"].parent == below["engine"].id
    assert span.start == below["admission"].start <= below["admission"].end == below["engine"].start
    assert below["first token"].end + 200_000_000 <= below["engine"].end + 20_000_000
    assert below["engine"].end == span.end


def test_the_upstream_is_asked_in_the_same_trace(traced: ProxyProcess, plain: Upstream) -> None:
    """As a child of our span, with the state of the vendor as it came; the log has the trace too."""
    collector.listen(plain)

    traced.ask(CHAT_PATH, CHAT_REQUEST, _sampled("passed-on"))

    span, _ = _request(plain, "passed-on")
    (asked,) = [each for each in plain.calls if each.path == CHAT_PATH]
    assert asked.header("traceparent") == f"00-{TRACE}-{span.id}-01"
    assert asked.header("tracestate") == "vendor=1"
    assert traced.request_ended("passed-on")["trace_id"] == TRACE
    assert {each.header("x-tenant") for each in plain.asked if each.path == collector.TRACES} == {"shop"}


def test_an_error_is_an_error_of_the_span(traced: ProxyProcess, plain: Upstream) -> None:
    """Ours are; what the client did wrong is not."""
    collector.listen(plain)
    plain.on(CHAT_PATH, error(503))

    traced.ask(CHAT_PATH, CHAT_REQUEST, _sampled("ours"))
    traced.ask(CHAT_PATH, CHAT_REQUEST | {"model": "unknown"}, _sampled("theirs"))

    ours, _ = _request(plain, "ours")
    theirs, _ = _request(plain, "theirs")
    assert (ours.is_error, theirs.is_error) == (True, False)
    assert theirs.attributes["error.type"] == "UnknownModelError"


def test_what_nobody_samples_is_not_recorded(traced: ProxyProcess, plain: Upstream) -> None:
    """With `sample: 0` only traces that their beginner wants recorded are; the trace goes on all the same."""
    collector.listen(plain)

    traced.ask(CHAT_PATH, CHAT_REQUEST, {"X-Request-Id": "unsampled"})
    traced.stream("/readyz", None, _sampled("probe"))
    traced.ask(CHAT_PATH, CHAT_REQUEST, _sampled("sampled"))

    _request(plain, "sampled")
    told = {each.attributes.get("appliance.request_id") for each in collector.spans(plain)}
    assert told == {"sampled", None}
    first = next(each for each in plain.calls if each.path == CHAT_PATH)
    flags = str(first.header("traceparent")).rpartition("-")[2]
    assert not int(flags, 16) & 1


def test_spans_are_sent_before_the_server_is_gone(plain: Upstream, tmp_path: Path) -> None:
    """A stop sends what waits."""
    collector.listen(plain)
    server = ProxyProcess(
        write_config(tmp_path, plain, {"tracing": {"endpoint": plain.origin}}), tmp_path / "server.log"
    )
    server.wait_until_ready(60).ask(CHAT_PATH, CHAT_REQUEST, {"X-Request-Id": "last"})

    assert server.stop() == 0
    assert "last" in {each.attributes.get("appliance.request_id") for each in collector.spans(plain)}


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    """An appliance that does not trace starts no slower for it."""
    code = "import sys, appliance.server; print(*(name for name in sys.modules if name.startswith('opentelemetry')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
