"""A proxy and its upstreams: requests, responses, load balancing, retries, health, the cache, and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import cast

import pytest
from prometheus_client import REGISTRY
from proxy.proxy_model import CHAT, ask, chat, config, proxied, read
from proxy.raw_server import KeepAliveServer, raw_server
from server_process import free_port
from upstreams import FOR_EVER, Answer, Asked, Upstream, error, event, json_answer, sse, stream

from appliance.core.errors import GatewayError, GatewayTimeoutError, RequestError, UnavailableError
from appliance.core.model import OPENAI_PATHS, ModelRequest, Operation, Peers
from appliance.core.request_context import use_context
from appliance.models.factory import ModelFactory
from appliance.models.presets import RequestPresets
from appliance.models.proxy import ProxyModel
from appliance.proxy.pool import unique_names

CHAT_PATH = "/v1/chat/completions"
BROKEN = error(503, "broken")


async def _until(is_so: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.02)


def _counts(upstreams: tuple[Upstream, ...]) -> list[int]:
    return [len(each.calls) for each in upstreams]


async def test_only_the_model_name_is_changed_in_requests(upstream: Upstream) -> None:
    """Unknown fields, nulls, long numbers and spaces arrive as they were sent."""
    body = b'{ "model":"mine","messages":[ ], "unknown" : {"a":null}, "seed": 12345678901234567890123, "top_p":1.0 }'
    async with proxied(upstream) as model:
        await model.handle(ModelRequest(CHAT, body))

    assert upstream.calls[0].body == body.replace(b'"mine"', b'"theirs"')


async def test_only_the_model_name_is_changed_in_responses(upstream: Upstream) -> None:
    """The client's name is in the response; every other byte is the upstream's."""
    body = b'{"model" : "theirs-2024", "x": 1.00, "choices":[{"message":{"content":"\\u00e9","extra":null}}]}'
    upstream.on(CHAT_PATH, Answer(body=body))
    async with proxied(upstream) as model:
        reply = await model.handle(ModelRequest(CHAT, b'{"model": "an/alias"}'))

    assert reply.body == body.replace(b"theirs-2024", b"an/alias")


async def test_an_upstream_without_a_configured_name_gets_the_name_of_the_proxy(upstream: Upstream) -> None:
    """Also if the client sends an alias, or no name."""
    async with proxied(upstream, upstreams=[{"url": upstream.url}]) as model:
        for body in (b'{"model": "alias"}', b"{}"):
            await model.handle(ModelRequest(CHAT, body))

    assert [each.json()["model"] for each in upstream.calls] == ["mine", "mine"]


@pytest.mark.parametrize("operation", OPENAI_PATHS)
async def test_every_operation_goes_to_its_path(upstream: Upstream, operation: Operation) -> None:
    """With the query."""
    upstream.on("*", json_answer({"ok": True}))
    async with proxied(upstream) as model:
        assert operation in model.operations
        for path in OPENAI_PATHS[operation]:
            await model.handle(ModelRequest(operation, b"{}", path=path, query="beta=true"))

    assert [(each.path, each.query) for each in upstream.calls] == [
        (path, "beta=true") for path in OPENAI_PATHS[operation]
    ]


async def test_files_are_not_changed(upstream: Upstream) -> None:
    """Speech has its own content type; of a form only the model name is changed."""
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\xff\x00"model":"mine"\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nmine\r\n--b--\r\n'
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    async with proxied(upstream) as model:
        speech = await model.handle(ModelRequest(Operation.SPEECH, b'{"model": "mine"}'))
        assert (speech.media_type, await read(speech)) == ("audio/wav", b"RIFF\x00\xff\xfe")
        await ask(model, ModelRequest(Operation.TRANSCRIPTION, form, headers))

    assert upstream.calls[1].body == form.replace(b"\r\n\r\nmine\r\n", b"\r\n\r\ntheirs\r\n")
    assert upstream.calls[1].header("content-type") == headers["content-type"]


async def test_the_config_selects_headers(upstream: Upstream) -> None:
    """Its own override the client's; the client's key is forwarded only on request, and dropped headers never are."""
    upstream.on(CHAT_PATH, Answer(body=b"{}", headers={"X-Drop": "1", "X-Keep": "2", "X-Other": "3"}))
    client = {"authorization": "Bearer theirs", "x-tenant": "t", "x-drop": "1", "traceparent": "00-a", "x-mine": "no"}
    exposed = ["X-Keep", "X-Drop"]
    headers = {"forward": ["X-Tenant", "X-Drop"], "set": {"X-Mine": "yes"}, "expose": exposed, "drop": ["X-Drop"]}
    async with proxied(upstream, headers=headers) as model:
        reply = await model.handle(chat(headers=client))
    async with proxied(upstream, headers={"forward": ["Authorization"]}) as model:
        upstream.reset()
        await model.handle(chat(headers=client))

    assert dict(reply.headers).get("x-keep") == "2"
    assert not {"x-drop", "x-other"} & set(reply.headers)
    assert upstream.calls[0].header("authorization") == "Bearer theirs"


async def test_the_key_of_the_client_is_not_forwarded(upstream: Upstream) -> None:
    """The upstream gets its own key, or none."""
    member = {"url": upstream.url, "api_key": "sk-ours", "headers": {"X-Org": "o"}}
    async with proxied(upstream, upstreams=[member], headers={"set": {"X-Mine": "yes"}}) as model:
        await model.handle(chat(headers={"authorization": "Bearer theirs", "cookie": "c", "x-mine": "no"}))

    (asked,) = upstream.calls
    assert asked.header("authorization") == "Bearer sk-ours"
    assert (asked.header("x-org"), asked.header("x-mine"), asked.header("cookie")) == ("o", "yes", None)


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 503])
async def test_an_upstreams_error_keeps_status_and_body(upstream: Upstream, status: int) -> None:
    """Every byte, and Retry-After; its authentication challenge is removed."""
    body = b'{ "error" : {"message":"m", "code": null, "model": "theirs"}, "model": "theirs" }'
    upstream.on(CHAT_PATH, Answer(status, body, headers={"Retry-After": "7", "WWW-Authenticate": "Bearer"}))
    async with proxied(upstream) as model:
        reply = await model.handle(chat())

    assert (reply.status, reply.body, reply.headers["retry-after"]) == (status, body, "7")
    assert "www-authenticate" not in reply.headers


async def test_an_upstream_has_changes_of_its_own(upstreams: tuple[Upstream, ...]) -> None:
    """On top of those of the model, which are made before; a form stays as it is."""
    one, two, _ = upstreams
    request = {"defaults": {"top_k": 5, "seed": 1}, "drop": ["user"], "system_prompt": "Be brief."}
    members = [{"url": one.url, "request": request}, {"url": two.url}]
    body = {"messages": [], "seed": 7, "user": "me"}
    async with proxied(one, two, upstreams=members, balance="round_robin") as model:
        for _ in range(2):
            await model.handle(ModelRequest(CHAT, json.dumps(body).encode()))
        changed = one.calls[0].json()
        one.reset()
        form = b'--b\r\nContent-Disposition: form-data; name="user"\r\n\r\nme\r\n--b--\r\n'
        headers = {"content-type": "multipart/form-data; boundary=b"}
        await model.handle(ModelRequest(Operation.TRANSCRIPTION, form, headers))

    system = [{"role": "system", "content": "Be brief."}]
    assert [two.calls[0].json(), one.calls[0].body] == [body | {"model": "mine"}, form]
    assert changed == {"messages": system, "seed": 7, "top_k": 5, "model": "mine"}


async def test_a_body_that_is_not_an_object_is_rejected(upstream: Upstream) -> None:
    """400, and no upstream gets it."""
    async with proxied(upstream) as model:
        with pytest.raises(RequestError, match="not a request"):
            await model.handle(ModelRequest(CHAT, b"[1]"))

    assert upstream.calls == []


async def test_a_failed_request_is_retried_at_another_upstream(upstreams: tuple[Upstream, ...]) -> None:
    """Before the first byte, so that the client does not notice."""
    one, two, _ = upstreams
    one.on(CHAT_PATH, BROKEN)
    two.on(CHAT_PATH, BROKEN)
    async with proxied(*upstreams, retry={"attempts": 2}, balance="round_robin") as model:
        status, _body = await ask(model)

    assert (status, _counts(upstreams)) == (200, [1, 1, 1])


async def test_a_reserve_gets_requests_only_while_the_others_are_unavailable(upstreams: tuple[Upstream, ...]) -> None:
    """By their circuit breakers; probes and metrics have the priorities."""
    one, two, reserve = upstreams
    for each in (one, two):
        each.on(CHAT_PATH, error(500))
    breaker = {"failures": 1, "open_seconds": 1.5, "outlier_margin": 1}
    members = _prioritized(one, two, reserve)
    async with proxied(*upstreams, upstreams=members, breaker=breaker, balance="round_robin") as model:
        statuses = [(await ask(model))[0] for _ in range(4)]
        priorities = [each["priority"] for each in model.upstreams()]
        labels = {"model": "mine", "upstream": f"127.0.0.1:{reserve.port}"}
        assert REGISTRY.get_sample_value("appliance_upstream_priority", labels) == 1
        for each in (one, two):
            each.reset()
        reserve.reset()
        await asyncio.sleep(1.6)
        statuses += [(await ask(model))[0] for _ in range(4)]

    assert statuses == [500, 500, *[200] * 6]
    assert (priorities, _counts(upstreams)) == ([0, 0, 1], [2, 2, 0])


@pytest.mark.parametrize(("attempts", "counts"), [(2, [1, 1, 1]), (1, [1, 0, 1]), (0, [1, 0, 0])])
async def test_a_refused_request_goes_on_to_the_reserve(
    upstreams: tuple[Upstream, ...], attempts: int, counts: list[int]
) -> None:
    """After the others of its priority; the last attempt is kept for the reserve, whatever the budget is."""
    one, two, reserve = upstreams
    for each in (one, two):
        each.on(CHAT_PATH, error(429))
    retry = {"attempts": attempts}
    members = _prioritized(one, two, reserve)
    async with proxied(*upstreams, upstreams=members, retry=retry, balance="round_robin") as model:
        status, _body = await ask(model)
        assert (status, _counts(upstreams)) == (200 if counts[2] else 429, counts)
        if attempts:
            assert [(await ask(model))[0] for _ in range(20)] == [200] * 20


def _prioritized(one: Upstream, two: Upstream, reserve: Upstream) -> list[dict[str, object]]:
    return [{"url": one.url}, {"url": two.url}, {"url": reserve.url, "priority": 1}]


async def test_a_single_upstream_is_retried(upstream: Upstream) -> None:
    """Not after 429, nor after a bad request."""
    async with proxied(upstream, retry={"attempts": 2, "backoff_seconds": 0.01}) as model:
        upstream.on(CHAT_PATH, BROKEN, BROKEN, json_answer({"ok": True}))
        assert await ask(model) == (200, {"ok": True})
        upstream.on(CHAT_PATH, error(429))
        assert (await ask(model))[0] == 429
        upstream.on(CHAT_PATH, error(400))
        assert (await ask(model))[0] == 400

    assert len(upstream.calls) == 5


class _Silence:
    """Closes each connection without a response, and counts them."""

    times = 0

    def __iter__(self) -> Iterator[bytes]:
        self.times += 1
        return iter(())


@pytest.mark.parametrize(("generations", "times"), [(False, 1), (True, 3)])
async def test_a_generation_that_may_have_begun_is_not_retried(generations: bool, times: int) -> None:
    """
    A connection that breaks after the request says nothing of what was made, and billed; the file can allow it anyway.
    """
    silence = _Silence()
    async with raw_server(silence) as port:
        retry = {"attempts": 2, "backoff_seconds": 0, "budget_share": 1, "generations": generations}
        upstream = {"url": f"http://127.0.0.1:{port}"}
        async with proxied(
            upstreams=[upstream], health={"path": None}, retry=retry, breaker={"failures": 1000}
        ) as model:
            with pytest.raises(GatewayError):
                await model.handle(chat())
            assert silence.times == times
            with pytest.raises(GatewayError):
                await model.handle(ModelRequest(Operation.EMBEDDING, b'{"input": "a"}'))

    assert silence.times == times + 3


async def test_a_request_on_a_connection_that_closes_under_it_may_have_begun() -> None:
    """The upstream closes an idle connection as the next request goes out: a generation is not sent again, others are.

    Whether it has read the request, nobody can tell.
    """
    retry, keys = {"attempts": 1, "backoff_seconds": 0}, {"health": {"path": None}, "breaker": {"failures": 1000}}
    counts = []
    for request in (chat(), ModelRequest(Operation.EMBEDDING, b'{"input": "a"}')):
        server = KeepAliveServer(KeepAliveServer.ANSWER, KeepAliveServer.CLOSE, KeepAliveServer.ANSWER)
        async with server.listening() as url, proxied(upstreams=[{"url": url}], retry=retry, **keys) as model:
            await ask(model, request)
            outcome = await asyncio.gather(ask(model, request), return_exceptions=True)
            counts.append((server.requests, server.connections, type(outcome[0])))

    assert counts == [(2, 1, GatewayError), (3, 2, tuple)]


async def test_a_generation_does_not_go_out_on_a_connection_that_is_closed() -> None:
    """The upstream has closed it while it was idle, so the request gets a new one, and needs no retry."""
    server = KeepAliveServer(KeepAliveServer.ANSWER_AND_END, KeepAliveServer.ANSWER)
    async with server.listening() as url, proxied(upstreams=[{"url": url}], health={"path": None}) as model:
        await ask(model)
        await asyncio.wait_for(server.was_noticed.wait(), 30)
        assert (await ask(model))[0] == 200

    assert (server.requests, server.connections) == (2, 2)


async def test_a_generation_that_cannot_have_begun_is_retried(upstreams: tuple[Upstream, ...]) -> None:
    """Without a connection, and after 429, 503 and 529; not after another gateway's 502 or 504."""
    one, two, _ = upstreams
    nobody = {"url": f"http://127.0.0.1:{free_port()}"}
    retry, health = {"attempts": 2, "backoff_seconds": 0}, {"path": None}
    async with proxied(two, upstreams=[nobody, {"url": two.url}], retry=retry, health=health) as model:
        assert (await ask(model))[0] == 200
    async with proxied(one, two, retry=retry) as model:
        statuses = []
        for status in (429, 503, 529, 502, 504):
            first = iter([error(status)])
            for each in (one, two):
                each.on(CHAT_PATH, partial(_next, first))
            statuses.append((await ask(model))[0])

    assert statuses == [200, 200, 200, 502, 504]


def _next(answers: Iterator[Answer], _: Asked) -> Answer:
    return next(answers, json_answer({}))


async def test_cached_responses_belong_to_an_api_key(upstream: Upstream) -> None:
    """Unless the config shares them."""

    async def asked_by(model: ProxyModel, key: str) -> str:
        with use_context("r") as record:
            record.key = key
            return (await model.handle(chat(temperature=0))).headers["x-cache"]

    async with proxied(upstream, cache={}) as model:
        apart = [await asked_by(model, key) for key in ("a", "a", "b", "b")]
    async with proxied(upstream, cache={"shared": True}) as model:
        together = [await asked_by(model, key) for key in ("a", "b")]

    assert apart == ["miss", "hit", "miss", "hit"]
    assert together == ["miss", "hit"]


async def test_the_last_response_is_returned_when_all_upstreams_fail(upstreams: tuple[Upstream, ...]) -> None:
    """Unchanged."""
    for each in upstreams:
        each.on(CHAT_PATH, BROKEN)
    async with proxied(*upstreams, retry={"attempts": 5, "backoff_seconds": 0}) as model:
        status, body = await ask(model)

    assert (status, body["error"]["message"], sum(_counts(upstreams))) == (503, "broken", 4)


async def test_retries_stay_within_their_budget(upstream: Upstream) -> None:
    """When every request fails, the load grows by three, and then by one of ten requests."""
    upstream.on(CHAT_PATH, BROKEN)
    retry = {"attempts": 1, "budget_share": 0.1, "backoff_seconds": 0}
    async with proxied(upstream, retry=retry, breaker={"failures": 1000}) as model:
        for _ in range(30):
            await ask(model)

    assert 30 + 3 <= len(upstream.calls) <= 30 + 6


async def test_a_timeout_is_not_retried(upstreams: tuple[Upstream, ...]) -> None:
    """504; the client does not wait as long again."""
    for each in upstreams:
        each.on(CHAT_PATH, Answer(wait=FOR_EVER))
    async with proxied(*upstreams, retry={"attempts": 2}) as model:
        with pytest.raises(GatewayTimeoutError) as raised:
            await model.handle(chat())

    assert (raised.value.status, sum(_counts(upstreams))) == (504, 1)


async def test_the_circuit_breaker_protects_a_failing_upstream(upstreams: tuple[Upstream, ...]) -> None:
    """After some failures it gets no requests; after a while one request tests it, and the circuit closes."""
    one, two, _ = upstreams
    one.on(CHAT_PATH, error(500))
    breaker = {"failures": 2, "open_seconds": 1.5}
    async with proxied(one, two, balance="round_robin", breaker=breaker) as model:
        for _ in range(10):
            await ask(model)
        assert _counts((one, two)) == [2, 8]
        assert [each["circuit"] for each in model.upstreams()] == ["open", "closed"]
        one.reset()
        await asyncio.sleep(1.6)
        for _ in range(4):
            await ask(model)

        assert len(one.calls) == 2
        assert [each["circuit"] for each in model.upstreams()] == ["closed", "closed"]


async def test_without_an_available_upstream_the_response_is_503(upstream: Upstream) -> None:
    """With Retry-After, without a request, and the model is not ready."""
    upstream.on(CHAT_PATH, error(500))
    async with proxied(upstream, breaker={"failures": 1, "open_seconds": 30}) as model:
        await ask(model)
        with pytest.raises(UnavailableError) as raised:
            await model.handle(chat())
        with pytest.raises(UnavailableError):
            await model.check()

    assert (raised.value.status, raised.value.code) == (503, "no_upstream")
    assert str(raised.value) == "The model is unavailable: its upstream cannot answer now"
    assert 28 <= cast("int", raised.value.retry_after) <= 30
    assert len(upstream.calls) == 1


async def test_an_outlier_is_ejected(upstreams: tuple[Upstream, ...]) -> None:
    """An upstream that fails much more often than the others, but never many times in a row."""
    bad = upstreams[0]
    bad.on(CHAT_PATH, *[error(500), json_answer({})] * 40)
    async with proxied(*upstreams, balance="round_robin", breaker={"failures": 5, "open_seconds": 60}) as model:
        for _ in range(90):
            await ask(model)

        assert [each["circuit"] for each in model.upstreams()] == ["open", "closed", "closed"]
    assert 10 <= len(bad.calls) < 25


async def test_at_most_half_of_the_upstreams_are_ejected(upstreams: tuple[Upstream, ...]) -> None:
    """However often they fail."""
    one, two, _ = upstreams
    for each in (one, two):
        each.on(CHAT_PATH, *[error(500), json_answer({})] * 60)
    async with proxied(*upstreams, balance="round_robin", breaker={"outlier_margin": 0.1}) as model:
        for _ in range(90):
            await ask(model)

        assert [each["circuit"] for each in model.upstreams()].count("open") == 1


async def test_health_is_checked_on_an_interval_and_not_per_request(upstream: Upstream) -> None:
    """Fifty requests need no health check but the first."""
    async with proxied(upstream) as model:
        for _ in range(50):
            await ask(model)

    assert [each.method for each in upstream.asked] == ["POST"] * 50


async def test_an_upstream_without_a_health_path_is_healthy(upstream: Upstream) -> None:
    """Only the circuit breaker protects it."""
    upstream.on(CHAT_PATH, error(500))
    async with proxied(upstream, health={"path": None, "interval_seconds": 0.02}, breaker={"failures": 1}) as model:
        await model.check()
        await asyncio.sleep(0.1)
        assert upstream.asked == []
        await ask(model)

        with pytest.raises(UnavailableError):
            await model.check()


async def test_health_checks_have_the_headers_of_requests(upstream: Upstream) -> None:
    """The key, and the headers of the upstream and of the proxy."""
    member = {"url": upstream.url, "api_key": "sk-ours", "headers": {"X-Org": "o"}}
    health = {"interval_seconds": 0.05}
    async with proxied(upstream, upstreams=[member], headers={"set": {"X-Mine": "yes"}}, health=health):
        await _until(lambda: upstream.asked)

    sent = [upstream.asked[0].header(name) for name in ("authorization", "x-org", "x-mine")]
    assert sent == ["Bearer sk-ours", "o", "yes"]


async def test_closing_twice_is_safe(upstream: Upstream) -> None:
    """And before loading."""
    async with proxied(upstream, cache={}) as model:
        await model.close()
    await ModelFactory().create(config(upstream), cast("Peers", None)).close()

    assert upstream.asked == []


async def test_an_upstream_becomes_unhealthy_and_healthy_again(upstreams: tuple[Upstream, ...]) -> None:
    """Requests go to healthy upstreams; a single failed check changes nothing."""
    one, two, _ = upstreams
    health = {"interval_seconds": 0.05, "path": "/health", "failures": 2}
    async with proxied(one, two, health=health, balance="round_robin") as model:
        one.on("/health", error(500))
        await _until(lambda: not model.upstreams()[0]["available"])
        assert "answered 500" in model.upstreams()[0]["reason"]
        assert sum(each.path == "/v1/health" for each in one.asked) + len(one.asked) >= 2
        await model.check()
        for _ in range(4):
            await ask(model)
        assert _counts((one, two)) == [0, 4]
        one.reset()
        await _until(lambda: model.upstreams()[0]["available"])
        two.on("/health", error(500))
        one.on("/health", error(500))
        await _until(lambda: not any(each["available"] for each in model.upstreams()))

        with pytest.raises(UnavailableError):
            await model.check()


@pytest.mark.parametrize(
    ("answer", "is_healthy", "reason"),
    [
        (json_answer({"data": []}), True, "the health check succeeded"),
        (error(403), True, "the health check succeeded"),
        (error(429), True, "the health check succeeded"),
        (error(401), False, "check api_key"),
        (error(404), False, "set health.path"),
        (error(500), False, "answered 500"),
        (Answer(wait=FOR_EVER), False, "not answered within"),
    ],
)
async def test_which_responses_to_a_health_check_are_healthy(
    upstream: Upstream, answer: Answer, is_healthy: bool, reason: str
) -> None:
    """A wrong key is not, and the reason says what to do."""
    upstream.on("/v1/models", answer)
    async with proxied(upstream, health={"interval_seconds": 60, "timeout_seconds": 0.5}) as model:
        (shown,) = model.upstreams()

    assert shown["available"] == is_healthy
    assert reason in shown["reason"]


async def test_a_stream_has_the_clients_name_in_every_event(upstream: Upstream) -> None:
    """No other byte is different."""
    upstream.on(CHAT_PATH, lambda asked: stream(b": hello\n\n", *sse(asked)))
    async with proxied(upstream) as model:
        reply = await model.handle(chat("a b c", stream=True))
        got = await read(reply)

    assert reply.media_type.startswith("text/event-stream")
    assert got == (b": hello\n\n" + b"".join(sse(upstream.calls[0]))).replace(b'"theirs"', b'"mine"')


async def test_silence_in_a_stream_is_filled_with_comments(upstream: Upstream) -> None:
    """Before the first event and between two, never within one."""
    pieces = (0.5, b"data: 1\n\n", 0.5, b"event: a\n", 0.5, b"data: 2\n\n")
    upstream.on(CHAT_PATH, stream(*pieces))
    async with proxied(upstream, keep_alive_seconds=0.2) as model:
        text = await read(await model.handle(chat(stream=True)))

    before, between, within = text.partition(b"data: 1\n\n")[0], text.split(b"data: 1\n\n")[1], text[-18:]
    assert before.startswith(b": keep-alive\n\n")
    assert between.startswith(b": keep-alive\n\n")
    assert within == b"event: a\ndata: 2\n\n"
    assert text.replace(b": keep-alive\n\n", b"") == b"data: 1\n\nevent: a\ndata: 2\n\n"


@pytest.mark.parametrize("sent", [b"data: 1\n\n", b"data: 1\n\nevent: x\n", b"data: 1\n\ndata: hal"])
async def test_a_stream_that_times_out_ends_with_a_complete_line(upstream: Upstream, sent: bytes) -> None:
    """Complete events were relayed, half a line was not, and another event can follow."""
    upstream.on(CHAT_PATH, stream(sent, FOR_EVER))
    chunks: list[bytes] = []
    async with proxied(upstream) as model:
        reply = await model.handle(chat(stream=True))
        with pytest.raises(GatewayTimeoutError):
            await read(reply, chunks)

    got = b"".join(chunks)
    assert got.endswith(b"\n\n")
    assert got.startswith(b"data: 1\n\n")
    assert b"hal" not in got


async def test_a_stream_is_not_retried_after_its_first_byte(upstreams: tuple[Upstream, ...]) -> None:
    """The client has begun to read; another response cannot follow."""
    for each in upstreams:
        each.on(CHAT_PATH, stream(b"data: 1\n\n", FOR_EVER))
    async with proxied(*upstreams, retry={"attempts": 2}) as model:
        reply = await model.handle(chat(stream=True))
        with pytest.raises(GatewayError):
            await read(reply)

        assert sum(each["running"] for each in model.upstreams()) == 0
    assert sum(_counts(upstreams)) == 1


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_ends_the_request_to_the_upstream(upstream: Upstream, is_stream: bool) -> None:
    """By cancelling its wait, or by closing its stream."""
    upstream.on(CHAT_PATH, stream(b"data: 1\n\n", FOR_EVER) if is_stream else Answer(wait=FOR_EVER))
    async with proxied(upstream) as model:
        if is_stream:
            reply = await model.handle(chat(stream=True))
            assert not isinstance(reply.body, bytes)
            async with aclosing(reply.body) as body:
                assert await anext(body) == b"data: 1\n\n"
        else:
            waiting = asyncio.create_task(model.handle(chat()))
            await _until(lambda: upstream.calls)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

        await _until(lambda: upstream.calls[0].has_left)
        assert model.upstreams()[0]["running"] == 0


async def test_a_response_is_cached(upstream: Upstream) -> None:
    """For every name of the model; a header and the metrics show it."""
    async with proxied(upstream, cache={}) as model:
        replies = [
            await model.handle(ModelRequest(Operation.EMBEDDING, b'{"model": "%s", "input": "a"}' % name))
            for name in (b"mine", b"alias")
        ]
        hits = REGISTRY.get_sample_value("appliance_cache_requests_total", {"model": "mine", "result": "hit"})

    assert [reply.headers["x-cache"] for reply in replies] == ["miss", "hit"]
    assert [json.loads(await read(reply))["model"] for reply in replies] == ["mine", "alias"]
    assert (len(upstream.calls), replies[1].headers["age"]) == (1, "0")
    assert hits


@pytest.mark.parametrize(
    "call",
    [
        chat(temperature=0, stream=True),
        chat(temperature=0.5),
        chat(temperature=0, headers={"cache-control": "no-store"}),
        chat(temperature=0, headers={"cache-control": "no-cache"}),
    ],
)
async def test_which_responses_are_not_cached(upstream: Upstream, call: ModelRequest) -> None:
    """Streams, random ones, and those that the client forbids."""
    async with proxied(upstream, cache={}) as model:
        for _ in range(2):
            await read(await model.handle(call))

    assert len(upstream.calls) == 2


@pytest.mark.parametrize("answer", [error(400), Answer(body=b"{}", headers={"Cache-Control": "private, no-store"})])
async def test_errors_and_responses_with_no_store_are_not_cached(upstream: Upstream, answer: Answer) -> None:
    """Each is asked for anew."""
    upstream.on(CHAT_PATH, answer)
    async with proxied(upstream, cache={}) as model:
        for _ in range(2):
            await ask(model, chat(temperature=0))

    assert len(upstream.calls) == 2


async def test_overrides_of_the_config_make_responses_cacheable(upstream: Upstream) -> None:
    """A proxy that makes every request deterministic caches every response."""
    presets = RequestPresets(config(upstream, request={"override": {"temperature": 0}}))
    async with proxied(upstream, cache={}) as model:
        for _ in range(2):
            await ask(model, await presets.apply("mine", chat(temperature=1)))

    assert len(upstream.calls) == 1


async def test_the_same_prompt_finds_the_same_upstream(upstreams: tuple[Upstream, ...]) -> None:
    """Every turn of a conversation, while other conversations go elsewhere."""
    async with proxied(*upstreams, balance="prefix_affinity") as model:
        for turn in range(5):
            messages = [{"role": "user", "content": "hi"}] + [{"role": "assistant", "content": "yes"}] * turn
            await ask(model, ModelRequest(CHAT, json.dumps({"model": "mine", "messages": messages}).encode()))
        assert sorted(_counts(upstreams)) == [0, 0, 5]
        for number in range(30):
            await ask(model, chat(f"{number} other"))

    assert min(_counts(upstreams)) > 0


async def test_requests_are_counted_by_their_end(upstream: Upstream) -> None:
    """With few labels: the model, the upstream, and the end."""

    def count(end: str) -> float:
        labels = {"model": "counted", "upstream": f"127.0.0.1:{upstream.port}", "end": end}
        return REGISTRY.get_sample_value("appliance_upstream_requests_total", labels) or 0

    async with proxied(upstream, name="counted", breaker={"failures": 99}) as model:
        await ask(model)
        upstream.on(CHAT_PATH, error(404))
        await ask(model)
        upstream.on(CHAT_PATH, stream(b"data: 1\n\n", FOR_EVER))
        reply = await model.handle(chat(stream=True))
        assert not isinstance(reply.body, bytes)
        await anext(reply.body)
        await reply.body.aclose()

    assert [count(end) for end in ("2xx", "4xx", "left")] == [1, 1, 1]


async def test_a_truncated_response_counts_as_a_failure(upstream: Upstream) -> None:
    """Its reader gets an error, and metrics and circuit breaker count it."""

    async def cut_off() -> AsyncGenerator[bytes]:
        yield b"RIFF"
        await asyncio.sleep(0.2)
        raise ConnectionResetError

    upstream.on("/v1/audio/speech", Answer(body=cut_off(), media_type="audio/wav"))
    labels = {"model": "cut", "upstream": f"127.0.0.1:{upstream.port}", "end": "cut_off"}
    async with proxied(upstream, name="cut", breaker={"failures": 1}) as model:
        reply = await model.handle(ModelRequest(Operation.SPEECH, b"{}"))
        with pytest.raises(GatewayError):
            await read(reply)

        assert model.upstreams()[0]["circuit"] == "open"
    assert REGISTRY.get_sample_value("appliance_upstream_requests_total", labels) == 1


async def test_a_closed_proxy_is_no_longer_in_the_metrics(upstream: Upstream) -> None:
    """Its gauges are removed."""
    labels = {"model": "gone", "upstream": f"127.0.0.1:{upstream.port}"}
    async with proxied(upstream, name="gone"):
        assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) == 1

    assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) is None


async def test_two_proxies_with_the_same_labels_share_their_metrics(upstream: Upstream) -> None:
    """During a reload; closing one of them keeps the gauges of the other."""
    labels = {"model": "twice", "upstream": f"127.0.0.1:{upstream.port}"}
    async with proxied(upstream, name="twice", cache={}):
        async with proxied(upstream, name="twice", cache={}):
            pass

        assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) == 1
        assert REGISTRY.get_sample_value("appliance_cache_bytes", {"model": "twice"}) == 0

    assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) is None
    assert REGISTRY.get_sample_value("appliance_cache_bytes", {"model": "twice"}) is None


async def test_upstreams_have_unique_names(upstreams: tuple[Upstream, ...]) -> None:
    """The configured one, or the address; a repeated address gets a number."""
    members = [{"url": "http://a:1/secret"}, {"url": "http://a:1/v1?key=secret"}, {"url": "http://b", "name": "two"}]
    async with proxied(upstreams=members, health={"timeout_seconds": 0.2, "interval_seconds": 60}) as model:
        assert [each["name"] for each in model.upstreams()] == ["a:1", "a:1#2", "two"]

    assert unique_names([]) == []


async def test_a_complete_stream_is_counted_once(upstream: Upstream) -> None:
    """It is running until its last byte."""

    def chunks(asked: Asked) -> Answer:
        return stream(*(event({"n": number}) for number in range(asked.json()["n"])))

    upstream.on(CHAT_PATH, chunks)
    async with proxied(upstream) as model:
        reply = await model.handle(chat(stream=True, n=3))
        assert model.upstreams()[0]["running"] == 1
        await read(reply)
        assert model.upstreams()[0]["running"] == 0
