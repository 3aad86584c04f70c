"""A proxy and its upstreams: what goes up, what comes down, who is asked, and what is said when nobody answers."""

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
from proxy.raw_upstream import saying
from served import free_port
from upstreams import FOR_EVER, Answer, Asked, Upstream, error, event, json_answer, sse, stream

from appliance.core.errors import GatewayError, GatewayTimeoutError, RequestError, UnavailableError
from appliance.core.model import OPENAI_PATHS, ModelRequest, Operation, Peers
from appliance.core.request_context import use_context
from appliance.models.factory import ModelFactory
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


async def test_only_the_name_is_changed_on_the_way_up(upstream: Upstream) -> None:
    """Unknown fields, nulls, long numbers and spaces arrive as they were sent."""
    body = b'{ "model":"mine","messages":[ ], "unknown" : {"a":null}, "seed": 12345678901234567890123, "top_p":1.0 }'
    async with proxied(upstream) as model:
        await model.handle(ModelRequest(CHAT, body))

    assert upstream.calls[0].body == body.replace(b'"mine"', b'"theirs"')


async def test_only_the_name_is_changed_on_the_way_down(upstream: Upstream) -> None:
    """The client's name comes back, and every other byte."""
    body = b'{"model" : "theirs-2024", "x": 1.00, "choices":[{"message":{"content":"\\u00e9","extra":null}}]}'
    upstream.on(CHAT_PATH, Answer(body=body))
    async with proxied(upstream) as model:
        reply = await model.handle(ModelRequest(CHAT, b'{"model": "an/alias"}'))

    assert reply.body == body.replace(b"theirs-2024", b"an/alias")


async def test_an_upstream_without_a_name_of_its_own_gets_the_proxys(upstream: Upstream) -> None:
    """Also where the client says an alias, or nothing."""
    async with proxied(upstream, upstreams=[{"url": upstream.url}]) as model:
        for body in (b'{"model": "alias"}', b"{}"):
            await model.handle(ModelRequest(CHAT, body))

    assert [each.json()["model"] for each in upstream.calls] == ["mine", "mine"]


@pytest.mark.parametrize("operation", OPENAI_PATHS)
async def test_every_operation_goes_to_its_path(upstream: Upstream, operation: Operation) -> None:
    """Whatever the upstream makes of it."""
    upstream.on("*", json_answer({"ok": True}))
    async with proxied(upstream) as model:
        assert operation in model.operations
        for path in OPENAI_PATHS[operation]:
            await model.handle(ModelRequest(operation, b"{}", path=path, query="beta=true"))

    assert [(each.path, each.query) for each in upstream.calls] == [
        (path, "beta=true") for path in OPENAI_PATHS[operation]
    ]


async def test_bytes_pass_as_bytes(upstream: Upstream) -> None:
    """Speech comes back as it is, under its own content type; a form goes up with the file untouched."""
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


async def test_the_section_says_which_headers_travel(upstream: Upstream) -> None:
    """Its own over the client's, the client's key only if asked for, and none that it drops, up or down."""
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


async def test_the_clients_key_stays_here(upstream: Upstream) -> None:
    """The upstream gets its own, or none."""
    member = {"url": upstream.url, "api_key": "sk-ours", "headers": {"X-Org": "o"}}
    async with proxied(upstream, upstreams=[member], headers={"set": {"X-Mine": "yes"}}) as model:
        await model.handle(chat(headers={"authorization": "Bearer theirs", "cookie": "c", "x-mine": "no"}))

    (asked,) = upstream.calls
    assert asked.header("authorization") == "Bearer sk-ours"
    assert (asked.header("x-org"), asked.header("x-mine"), asked.header("cookie")) == ("o", "yes", None)


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 503])
async def test_an_upstreams_error_keeps_status_and_body(upstream: Upstream, status: int) -> None:
    """To the last byte, with what says when to come back; only its challenge is ours."""
    body = b'{ "error" : {"message":"m", "code": null, "model": "theirs"}, "model": "theirs" }'
    upstream.on(CHAT_PATH, Answer(status, body, headers={"Retry-After": "7", "WWW-Authenticate": "Bearer"}))
    async with proxied(upstream) as model:
        reply = await model.handle(chat())

    assert (reply.status, reply.body, reply.headers["retry-after"]) == (status, body, "7")
    assert "www-authenticate" not in reply.headers


async def test_requests_are_changed_as_the_section_says(upstream: Upstream) -> None:
    """Defaults, overrides, drops and a system prompt."""
    request = {"defaults": {"top_p": 0.5}, "override": {"user": "us"}, "drop": ["n"], "system_prompt": "Be kind."}
    async with proxied(upstream, request=request) as model:
        await model.handle(chat("hi", n=2, user="me"))

    assert upstream.calls[0].json() == {
        "model": "theirs",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
        "top_p": 0.5,
        "user": "us",
    }


async def test_what_is_no_object_is_refused(upstream: Upstream) -> None:
    """400, before anybody is asked."""
    async with proxied(upstream) as model:
        with pytest.raises(RequestError, match="not a request"):
            await model.handle(ModelRequest(CHAT, b"[1]"))

    assert upstream.calls == []


async def test_a_failure_goes_to_another_upstream(upstreams: tuple[Upstream, ...]) -> None:
    """Before the first byte, and the client does not notice."""
    one, two, _ = upstreams
    one.on(CHAT_PATH, BROKEN)
    two.on(CHAT_PATH, BROKEN)
    async with proxied(*upstreams, retry={"attempts": 2}, balance="round_robin") as model:
        status, _body = await ask(model)

    assert (status, _counts(upstreams)) == (200, [1, 1, 1])


async def test_a_lone_upstream_is_asked_again(upstream: Upstream) -> None:
    """Some faults pass; a limit does not by asking again at once, and a bad request never does."""
    async with proxied(upstream, retry={"attempts": 2, "backoff_seconds": 0.01}) as model:
        upstream.on(CHAT_PATH, BROKEN, BROKEN, json_answer({"ok": True}))
        assert await ask(model) == (200, {"ok": True})
        upstream.on(CHAT_PATH, error(429))
        assert (await ask(model))[0] == 429
        upstream.on(CHAT_PATH, error(400))
        assert (await ask(model))[0] == 400

    assert len(upstream.calls) == 5


class _Silence:
    """Says nothing, and counts how often it was asked to."""

    times = 0

    def __iter__(self) -> Iterator[bytes]:
        self.times += 1
        return iter(())


@pytest.mark.parametrize(("generations", "times"), [(False, 1), (True, 3)])
async def test_a_generation_that_may_have_begun_is_made_once(generations: bool, times: int) -> None:
    """
    A connection that breaks after the request says nothing of what was made, and billed; the file can allow it anyway.
    """
    silence = _Silence()
    async with saying(silence) as port:
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


async def test_a_generation_goes_elsewhere_where_it_cannot_have_begun(upstreams: tuple[Upstream, ...]) -> None:
    """No connection, 429 and 503 are certain; another gateway's 502 and 504 are not."""
    one, two, _ = upstreams
    nobody = {"url": f"http://127.0.0.1:{free_port()}"}
    retry, health = {"attempts": 2, "backoff_seconds": 0}, {"path": None}
    async with proxied(two, upstreams=[nobody, {"url": two.url}], retry=retry, health=health) as model:
        assert (await ask(model))[0] == 200
    async with proxied(one, two, retry=retry) as model:
        statuses = []
        for status in (429, 503, 502, 504):
            first = iter([error(status)])
            for each in (one, two):
                each.on(CHAT_PATH, partial(_next, first))
            statuses.append((await ask(model))[0])

    assert statuses == [200, 200, 502, 504]


def _next(answers: Iterator[Answer], _: Asked) -> Answer:
    return next(answers, json_answer({}))


async def test_what_is_kept_for_one_key_is_not_for_another(upstream: Upstream) -> None:
    """Unless the file says that it is shared."""

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


async def test_the_last_answer_is_the_answer_when_all_fail(upstreams: tuple[Upstream, ...]) -> None:
    """As it is, from whoever gave it."""
    for each in upstreams:
        each.on(CHAT_PATH, BROKEN)
    async with proxied(*upstreams, retry={"attempts": 5, "backoff_seconds": 0}) as model:
        status, body = await ask(model)

    assert (status, body["error"]["message"], sum(_counts(upstreams))) == (503, "broken", 4)


async def test_retries_stay_within_their_budget(upstream: Upstream) -> None:
    """When everything fails, load hardly grows: three, and then one more for ten requests."""
    upstream.on(CHAT_PATH, BROKEN)
    retry = {"attempts": 1, "budget_share": 0.1, "backoff_seconds": 0}
    async with proxied(upstream, retry=retry, breaker={"failures": 1000}) as model:
        for _ in range(30):
            await ask(model)

    assert 30 + 3 <= len(upstream.calls) <= 30 + 6


async def test_an_upstream_that_is_too_slow_is_not_asked_twice(upstreams: tuple[Upstream, ...]) -> None:
    """504, and nobody waits as long again."""
    for each in upstreams:
        each.on(CHAT_PATH, Answer(wait=FOR_EVER))
    async with proxied(*upstreams, retry={"attempts": 2}) as model:
        with pytest.raises(GatewayTimeoutError) as raised:
            await model.handle(chat())

    assert (raised.value.status, sum(_counts(upstreams))) == (504, 1)


async def test_the_breaker_leaves_a_failing_upstream_alone(upstreams: tuple[Upstream, ...]) -> None:
    """After a few failures it is not asked; after a while one request tries it, and it is back."""
    one, two, _ = upstreams
    one.on(CHAT_PATH, error(500))
    breaker = {"failures": 2, "open_seconds": 0.5}
    async with proxied(one, two, balance="round_robin", breaker=breaker) as model:
        for _ in range(10):
            await ask(model)
        assert _counts((one, two)) == [2, 8]
        assert [each["circuit"] for each in model.upstreams()] == ["open", "closed"]
        one.reset()
        await asyncio.sleep(0.6)
        for _ in range(4):
            await ask(model)

        assert len(one.calls) == 2
        assert [each["circuit"] for each in model.upstreams()] == ["closed", "closed"]


async def test_nobody_left_is_said_with_a_time_to_come_back(upstream: Upstream) -> None:
    """503 with the wait, without a request, and the model does not count as ready."""
    upstream.on(CHAT_PATH, error(500))
    async with proxied(upstream, breaker={"failures": 1, "open_seconds": 30}) as model:
        await ask(model)
        with pytest.raises(UnavailableError) as raised:
            await model.handle(chat())
        with pytest.raises(UnavailableError):
            await model.check()

    assert (raised.value.status, raised.value.code) == (503, "no_upstream")
    assert 28 <= cast("int", raised.value.retry_after) <= 30
    assert len(upstream.calls) == 1


async def test_an_outlier_is_left_alone(upstreams: tuple[Upstream, ...]) -> None:
    """One that fails much more often than the others, though never many times in a row; and only it."""
    bad = upstreams[0]
    bad.on(CHAT_PATH, *[error(500), json_answer({})] * 40)
    async with proxied(*upstreams, balance="round_robin", breaker={"failures": 5, "open_seconds": 60}) as model:
        for _ in range(90):
            await ask(model)

        assert [each["circuit"] for each in model.upstreams()] == ["open", "closed", "closed"]
    assert 10 <= len(bad.calls) < 25


async def test_not_all_upstreams_are_outliers(upstreams: tuple[Upstream, ...]) -> None:
    """Half of them stay, whatever they do."""
    one, two, _ = upstreams
    for each in (one, two):
        each.on(CHAT_PATH, *[error(500), json_answer({})] * 60)
    async with proxied(*upstreams, balance="round_robin", breaker={"outlier_margin": 0.1}) as model:
        for _ in range(90):
            await ask(model)

        assert [each["circuit"] for each in model.upstreams()].count("open") == 1


async def test_health_is_checked_on_an_interval_and_not_per_request(upstream: Upstream) -> None:
    """Fifty requests, and no question about health but the first."""
    async with proxied(upstream) as model:
        for _ in range(50):
            await ask(model)

    assert [each.method for each in upstream.asked] == ["POST"] * 50


async def test_an_upstream_that_has_nothing_to_ask_is_trusted(upstream: Upstream) -> None:
    """Without a path nobody asks, and the breaker alone says when to leave it."""
    upstream.on(CHAT_PATH, error(500))
    async with proxied(upstream, health={"path": None, "interval_seconds": 0.02}, breaker={"failures": 1}) as model:
        await model.check()
        await asyncio.sleep(0.1)
        assert upstream.asked == []
        await ask(model)

        with pytest.raises(UnavailableError):
            await model.check()


async def test_checks_carry_what_requests_do(upstream: Upstream) -> None:
    """The key, and the headers of the upstream and of the whole section."""
    member = {"url": upstream.url, "api_key": "sk-ours", "headers": {"X-Org": "o"}}
    health = {"interval_seconds": 0.05}
    async with proxied(upstream, upstreams=[member], headers={"set": {"X-Mine": "yes"}}, health=health):
        await _until(lambda: upstream.asked)

    sent = [upstream.asked[0].header(name) for name in ("authorization", "x-org", "x-mine")]
    assert sent == ["Bearer sk-ours", "o", "yes"]


async def test_closing_twice_is_closing_once(upstream: Upstream) -> None:
    """And before loading, it is nothing."""
    async with proxied(upstream, cache={}) as model:
        await model.close()
    await ModelFactory().create(config(upstream), cast("Peers", None)).close()

    assert upstream.asked == []


async def test_an_upstream_leaves_and_comes_back(upstreams: tuple[Upstream, ...]) -> None:
    """Checks notice both; requests go where there is health, and a single bad check is nothing yet."""
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
        (json_answer({"data": []}), True, "it answers"),
        (error(403), True, "it answers"),
        (error(429), True, "it answers"),
        (error(401), False, "check api_key"),
        (error(404), False, "set health.path"),
        (error(500), False, "answered 500"),
        (Answer(wait=FOR_EVER), False, "not answered within"),
    ],
)
async def test_health_is_a_good_answer_or_a_limit(
    upstream: Upstream, answer: Answer, is_healthy: bool, reason: str
) -> None:
    """A wrong key is none, and the reason says what to do."""
    upstream.on("/v1/models", answer)
    async with proxied(upstream, health={"interval_seconds": 60, "timeout_seconds": 0.5}) as model:
        (shown,) = model.upstreams()

    assert shown["available"] == is_healthy
    assert reason in shown["reason"]


async def test_a_stream_has_the_clients_name_in_every_event(upstream: Upstream) -> None:
    """And no other byte is different."""
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
async def test_a_stream_that_falls_silent_ends_in_an_error_on_a_line_of_its_own(
    upstream: Upstream, sent: bytes
) -> None:
    """Whole events came through, half a line did not, and what follows can be read."""
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


async def test_after_the_first_byte_nobody_else_is_asked(upstreams: tuple[Upstream, ...]) -> None:
    """The client has begun to read; a second answer cannot follow the first."""
    for each in upstreams:
        each.on(CHAT_PATH, stream(b"data: 1\n\n", FOR_EVER))
    async with proxied(*upstreams, retry={"attempts": 2}) as model:
        reply = await model.handle(chat(stream=True))
        with pytest.raises(GatewayError):
            await read(reply)

        assert sum(each["running"] for each in model.upstreams()) == 0
    assert sum(_counts(upstreams)) == 1


@pytest.mark.parametrize("is_stream", [True, False])
async def test_whoever_leaves_ends_the_upstreams_work(upstream: Upstream, is_stream: bool) -> None:
    """A wait that is cancelled, and a stream that is closed."""
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


async def test_an_answer_is_kept_and_says_so(upstream: Upstream) -> None:
    """Under whatever name it is asked for, in the header and in the metrics."""
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
async def test_an_answer_is_not_kept_against_anybodys_will(upstream: Upstream, call: ModelRequest) -> None:
    """Streams, chance, and clients who want it otherwise."""
    async with proxied(upstream, cache={}) as model:
        for _ in range(2):
            await read(await model.handle(call))

    assert len(upstream.calls) == 2


@pytest.mark.parametrize("answer", [error(400), Answer(body=b"{}", headers={"Cache-Control": "private, no-store"})])
async def test_errors_and_what_the_upstream_forbids_are_not_kept(upstream: Upstream, answer: Answer) -> None:
    """Each is asked for anew."""
    upstream.on(CHAT_PATH, answer)
    async with proxied(upstream, cache={}) as model:
        for _ in range(2):
            await ask(model, chat(temperature=0))

    assert len(upstream.calls) == 2


async def test_defaults_of_the_section_decide_what_is_kept(upstream: Upstream) -> None:
    """A proxy that makes everything deterministic keeps everything."""
    async with proxied(upstream, cache={}, request={"override": {"temperature": 0}}) as model:
        for _ in range(2):
            await ask(model, chat(temperature=1))

    assert len(upstream.calls) == 1


async def test_the_same_prompt_finds_the_same_upstream(upstreams: tuple[Upstream, ...]) -> None:
    """Turn after turn of one conversation, while others go elsewhere."""
    async with proxied(*upstreams, balance="prefix_affinity") as model:
        for turn in range(5):
            messages = [{"role": "user", "content": "hi"}] + [{"role": "assistant", "content": "yes"}] * turn
            await ask(model, ModelRequest(CHAT, json.dumps({"model": "mine", "messages": messages}).encode()))
        assert sorted(_counts(upstreams)) == [0, 0, 5]
        for number in range(30):
            await ask(model, chat(f"{number} other"))

    assert min(_counts(upstreams)) > 0


async def test_requests_are_counted_by_their_end(upstream: Upstream) -> None:
    """With few labels: the model, the upstream, and how it ended."""

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


async def test_an_answer_that_is_cut_off_is_held_against_its_upstream(upstream: Upstream) -> None:
    """Whoever reads it sees it break, the count says how it ended, and the breaker counts it."""

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


async def test_a_proxy_that_ends_is_no_longer_in_the_metrics(upstream: Upstream) -> None:
    """Its gauges go with it."""
    labels = {"model": "gone", "upstream": f"127.0.0.1:{upstream.port}"}
    async with proxied(upstream, name="gone"):
        assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) == 1

    assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) is None


async def test_two_that_share_an_upstream_for_a_while_are_one_in_the_metrics(upstream: Upstream) -> None:
    """Where a newer config brings a proxy beside the old one, the end of one of them leaves the other's gauges."""
    labels = {"model": "twice", "upstream": f"127.0.0.1:{upstream.port}"}
    async with proxied(upstream, name="twice", cache={}):
        async with proxied(upstream, name="twice", cache={}):
            pass

        assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) == 1
        assert REGISTRY.get_sample_value("appliance_cache_bytes", {"model": "twice"}) == 0

    assert REGISTRY.get_sample_value("appliance_upstream_healthy", labels) is None
    assert REGISTRY.get_sample_value("appliance_cache_bytes", {"model": "twice"}) is None


async def test_upstreams_are_told_apart_by_name(upstreams: tuple[Upstream, ...]) -> None:
    """Their own, or their place; the same place twice has a number."""
    members = [{"url": "http://a:1/secret"}, {"url": "http://a:1/v1?key=secret"}, {"url": "http://b", "name": "two"}]
    async with proxied(upstreams=members, health={"timeout_seconds": 0.2, "interval_seconds": 60}) as model:
        assert [each["name"] for each in model.upstreams()] == ["a:1", "a:1#2", "two"]

    assert unique_names([]) == []


async def test_what_arrives_is_counted_once(upstream: Upstream) -> None:
    """A stream is under way until its last byte, and not after."""

    def chunks(asked: Asked) -> Answer:
        return stream(*(event({"n": number}) for number in range(asked.json()["n"])))

    upstream.on(CHAT_PATH, chunks)
    async with proxied(upstream) as model:
        reply = await model.handle(chat(stream=True, n=3))
        assert model.upstreams()[0]["running"] == 1
        await read(reply)
        assert model.upstreams()[0]["running"] == 0
