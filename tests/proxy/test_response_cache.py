"""The cache of responses: size, age, one fetch at a time, and what is cacheable."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.upstreams import ResponseCacheConfig
from appliance.core.errors import GatewayError
from appliance.core.json_edit import JsonObject
from appliance.core.model import ModelRequest, Operation
from appliance.proxy.response_cache import CachedResponse, ResponseCache, cache_key, is_cacheable


class Asked:
    """A fetch that is counted, and returns when `may_answer` is set."""

    def __init__(self, body: bytes = b"x", *, is_cacheable: bool = True) -> None:
        self.times = 0
        self.left = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.fault: Exception | None = None
        self._kept = CachedResponse(body, 200, "application/json", {}, is_cacheable)

    async def __call__(self) -> CachedResponse:
        """The answer."""
        self.times += 1
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        if self.fault:
            raise self.fault
        return self._kept


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def _answers(clock: Clock, **bounds: int) -> ResponseCache:
    return ResponseCache(ResponseCacheConfig(**bounds), "tested", clock)


async def test_the_second_request_is_a_hit_until_the_entry_expires() -> None:
    """With its age; a refresh can be requested."""
    clock, asked = Clock(), Asked()
    answers = _answers(clock, max_age_seconds=60)

    first = await answers.get(b"k", asked)
    clock.now = 59
    second = await answers.get(b"k", asked)
    fresh = await answers.get(b"k", asked, is_refresh=True)
    clock.now = 120
    old = await answers.get(b"k", asked)

    assert [result for _, result, _ in (first, second, fresh, old)] == ["miss", "hit", "miss", "miss"]
    assert (second[2], asked.times) == (59, 3)


async def test_responses_that_are_not_cacheable_are_not_cached() -> None:
    """Errors, and what the upstream forbids."""
    asked = Asked(is_cacheable=False)
    answers = _answers(Clock())

    assert [(await answers.get(b"k", asked))[1] for _ in range(2)] == ["miss", "miss"]


async def test_concurrent_requests_share_one_fetch() -> None:
    """However many there are."""
    asked, answers = Asked(), _answers(Clock())
    asked.may_answer.clear()
    waiting = [asyncio.create_task(answers.get(b"k", asked)) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked.may_answer.set()

    results = [result for _, result, _ in await asyncio.gather(*waiting)]

    assert (asked.times, results.count("miss"), results.count("shared")) == (1, 1, 9)


async def test_the_client_that_started_a_fetch_may_leave() -> None:
    """The others still get the response."""
    asked, answers = Asked(), _answers(Clock())
    asked.may_answer.clear()
    first, second = (asyncio.create_task(answers.get(b"k", asked)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    asked.may_answer.set()

    assert (await second)[0].body == b"x"
    assert (asked.times, asked.left) == (1, 0)


async def test_a_fetch_is_cancelled_when_all_clients_have_left() -> None:
    """The next request fetches again."""
    asked, answers = Asked(), _answers(Clock())
    asked.may_answer.clear()
    waiting = [asyncio.create_task(answers.get(b"k", asked)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert asked.left == 1

    asked.may_answer.set()

    assert (await answers.get(b"k", asked))[1] == "miss"


async def test_a_failed_fetch_is_shared_and_not_cached() -> None:
    """All who waited get the error; the next request fetches again."""
    asked, answers = Asked(), _answers(Clock())
    asked.may_answer.clear()
    asked.fault = GatewayError("broke")
    waiting = [asyncio.create_task(answers.get(b"k", asked)) for _ in range(2)]
    await asyncio.sleep(0.01)
    asked.may_answer.set()

    faults = await asyncio.gather(*waiting, return_exceptions=True)
    asked.fault = None

    assert [str(fault) for fault in faults] == ["broke", "broke"]
    assert (await answers.get(b"k", asked))[0].body == b"x"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000)), max_size=30))
def test_memory_is_bounded(asks: list[tuple[int, int]]) -> None:
    """For all keys and sizes."""

    async def run() -> None:
        answers = _answers(Clock(), max_bytes=4000)
        for key, size in asks:
            await answers.get(b"%d" % key, Asked(b"x" * size), is_refresh=True)
            assert answers.size <= 4000

    asyncio.run(run())


async def test_the_least_recently_used_entry_is_removed_first() -> None:
    """Entries in use stay."""
    answers = _answers(Clock(), max_bytes=3000)
    for key in (b"a", b"b", b"a", b"c"):
        await answers.get(key, Asked(b"x" * 800))

    assert (await answers.get(b"a", Asked()))[1] == "hit"
    assert (await answers.get(b"b", Asked()))[1] == "miss"


@pytest.mark.parametrize(
    ("operation", "body", "may"),
    [
        (Operation.EMBEDDING, b'{"input": "a"}', True),
        (Operation.RERANK, b'{"query": "a"}', True),
        (Operation.CHAT_COMPLETION, b'{"temperature": 0}', True),
        (Operation.CHAT_COMPLETION, b'{"temperature": 0.0, "stream": false}', True),
        (Operation.COMPLETION, b'{"seed": 0}', True),
        (Operation.CHAT_COMPLETION, b'{"seed": 1, "stream": true}', False),
        (Operation.CHAT_COMPLETION, b'{"temperature": 0.1}', False),
        (Operation.CHAT_COMPLETION, b'{"temperature": null, "seed": null}', False),
        (Operation.CHAT_COMPLETION, b'{"temperature": "0"}', False),
        (Operation.RESPONSE, b'{"temperature": 0}', False),
        (Operation.SPEECH, b'{"input": "a"}', False),
    ],
)
def test_only_deterministic_responses_are_cacheable(operation: Operation, body: bytes, may: bool) -> None:
    """Functions of their input, and completions that ask for it."""
    assert is_cacheable(ModelRequest(operation, body), JsonObject(body)) == may
    assert not is_cacheable(ModelRequest(operation, body, {"cache-control": "max-age=0, No-Store"}), JsonObject(body))


def test_the_cache_key_has_all_that_the_upstream_sees() -> None:
    """Another API key is another entry; another trace is not."""
    call = ModelRequest(Operation.EMBEDDING, b"", path="/v1/embeddings")

    same = cache_key(call, {"traceparent": "1", "authorization": "a"}, b"body")

    assert cache_key(call, {"traceparent": "2", "x-request-id": "r", "authorization": "a"}, b"body") == same
    assert cache_key(call, {"authorization": "b"}, b"body") != same
    assert cache_key(call, {"authorization": "a"}, b"bodY") != same
    assert cache_key(ModelRequest(Operation.SCORE, b""), {"authorization": "a"}, b"body") != same
