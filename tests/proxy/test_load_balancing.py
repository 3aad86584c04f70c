"""Load balancing by load, in turn, and by prompt, with weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from appliance.config.upstreams import Balance
from appliance.core.json_edit import JsonObject
from appliance.proxy.load_balancing import LoadBalancer, prompt_prefix


@dataclass(slots=True)
class Target:
    """A target of requests."""

    name: str
    weight: float = 1
    inflight: int = 0


def _three(*weights: float) -> list[Target]:
    return [Target(name, weight) for name, weight in zip("abc", weights or (1, 1, 1), strict=True)]


def _served(balance: Balance, targets: Sequence[Target], keys: Sequence[bytes]) -> Counter[str]:
    balancer = LoadBalancer(balance, targets)
    return Counter(balancer.pick(targets, key).name for key in keys)


def test_round_robin_spreads_by_weight_and_evenly() -> None:
    """Heavier targets get more requests, and not all of them in a row."""
    targets = _three(5, 1, 1)
    balancer = LoadBalancer("round_robin", targets)

    turns = "".join(balancer.pick(targets, b"").name for _ in range(14))

    assert turns == "aabacaa" * 2


def test_least_inflight_picks_the_least_loaded_target() -> None:
    """Relative to its weight."""
    targets = _three(1, 1, 2)
    targets[0].inflight, targets[1].inflight, targets[2].inflight = 2, 3, 4

    assert LoadBalancer("least_inflight", targets).pick(targets, b"").name == "c"


def test_least_inflight_alternates_between_equal_targets() -> None:
    """The first of the list does not get all requests."""
    assert _served("least_inflight", _three(), [b""] * 9) == {"a": 3, "b": 3, "c": 3}


def test_the_same_prompt_goes_to_the_same_upstream() -> None:
    """Other workers and restarts agree."""
    targets = _three()

    places = {LoadBalancer("prefix_affinity", targets).pick(targets, b"prompt").name for _ in range(5)}

    assert len(places) == 1


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 1, 2)])
def test_prompts_are_spread_by_weight(weights: tuple[float, ...]) -> None:
    """Within a fifth of the fair share."""
    keys = [str(number).encode() for number in range(4000)]

    served = _served("prefix_affinity", _three(*weights), keys)

    for name, weight in zip("abc", weights, strict=True):
        assert served[name] == pytest.approx(4000 * weight / sum(weights), rel=0.2)


def test_only_the_prompts_of_a_removed_target_move() -> None:
    """They come back to it."""
    targets = _three()
    balancer = LoadBalancer("prefix_affinity", targets)
    keys = [str(number).encode() for number in range(500)]
    before = {key: balancer.pick(targets, key).name for key in keys}

    without_c = {key: balancer.pick(targets[:2], key).name for key in keys}

    assert all(without_c[key] == name for key, name in before.items() if name != "c")
    assert {without_c[key] for key, name in before.items() if name == "c"} == {"a", "b"}


def test_a_popular_prompt_does_not_overload_its_target() -> None:
    """Beyond a quarter over its fair share the next target on the ring is picked."""
    targets = _three()
    balancer = LoadBalancer("prefix_affinity", targets)

    for _ in range(90):
        balancer.pick(targets, b"everybody's").inflight += 1

    assert max(target.inflight for target in targets) <= 38
    assert min(target.inflight for target in targets) > 0


def test_requests_without_a_prompt_go_to_the_least_loaded_target() -> None:
    """Forms do not all go to one target."""
    assert _served("prefix_affinity", _three(), [b""] * 9) == {"a": 3, "b": 3, "c": 3}


def _chat(*messages: tuple[str, str]) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": role, "content": text} for role, text in messages]}).encode()


def test_turns_of_a_conversation_have_the_same_prefix() -> None:
    """Another conversation under the same system prompt has another one."""
    first = _chat(("system", "s"), ("user", "hi"))
    second = _chat(("system", "s"), ("user", "hi"), ("assistant", "yes"), ("user", "more"))
    other = _chat(("system", "s"), ("user", "hello"))

    assert prompt_prefix(JsonObject(first)) == prompt_prefix(JsonObject(second)) != prompt_prefix(JsonObject(other))


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (b'{"prompt": "a"}', b'"a"'),
        (b'{"prompt": ["a", "b"]}', b'"a""b"'),
        (b'{"input": "i", "instructions": "s"}', b'"s""i"'),
        (b'{"query": "q", "documents": ["d"]}', b'"q"'),
        (b'{"messages": ["wrong"]}', b'"wrong"'),
        (b'{"n": 1}', b""),
        (b'{"messages": [{"role": 1}]}', b""),
    ],
)
def test_the_prefix_is_found_in_every_protocol(body: bytes, head: bytes) -> None:
    """Without a prompt it is empty."""
    assert prompt_prefix(JsonObject(body)) == head


def test_the_prefix_of_a_long_prompt_is_short() -> None:
    """Prompts with the same long beginning go to the same target."""
    one, two = (json.dumps({"prompt": "p" * 10_000 + end}).encode() for end in "ab")

    assert prompt_prefix(JsonObject(one)) == prompt_prefix(JsonObject(two))
