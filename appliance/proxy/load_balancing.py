"""Which upstream gets a request: the least loaded, each in turn, or the one that knows the beginning of the prompt."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil
from typing import Protocol, TypeVar

import msgspec

from appliance.config.upstreams import Balance
from appliance.core.json_edit import MAX_MEMBERS, JsonObject
from appliance.core.json_limits import has_more_members

# Points on the ring for a weight of 1: with these, shares are even within a few percent.
_POINTS = 128

# Limit of the load over the fair share (Mirrokni et al., "Consistent Hashing with Bounded Loads", 2016).
_MAX_OVERLOAD = 1.25

# Enough to tell conversations apart by their system prompt and first question.
_MAX_PREFIX_BYTES = 4096

# The members that hold the prompt, in the order in which models read them.
_PROMPT_MEMBERS = ("system", "instructions", "messages", "prompt", "input", "query")


class Target(Protocol):
    """Something that requests are distributed to."""

    name: str
    """The same after a restart, and in every worker."""
    weight: float
    """Share of the traffic, relative to the other targets."""
    inflight: int
    """Concurrent requests."""


Chosen = TypeVar("Chosen", bound=Target)


class LoadBalancer:
    """Picks a target out of those that are available.

    `round_robin` takes each in turn, heavier ones more often and evenly spread (nginx's "smooth" round robin);
    `least_inflight` the one with the fewest requests for its weight, equal ones in turn; `prefix_affinity` the same for
    the same beginning of a prompt, unless its load is far over its share. That is consistent hashing: when a target
    leaves, only its own prompts move, and they come back to it.
    """

    def __init__(self, balance: Balance, targets: Sequence[Target]) -> None:
        """`targets` are those of which subsets are available."""
        self._balance = balance
        self._credit: dict[str, float] = {}
        min_weight = min(target.weight for target in targets)
        self._ring = sorted(
            (_hash(f"{target.name}/{number}".encode()), target.name)
            for target in (targets if balance == "prefix_affinity" else ())
            for number in range(round(_POINTS * target.weight / min_weight))
        )

    def pick(self, candidates: Sequence[Chosen], prompt_prefix: bytes) -> Chosen:
        """Return one of the candidates, of which there is at least one."""
        if self._ring and prompt_prefix:
            return self._pick_by_prefix(candidates, prompt_prefix)
        if self._balance != "round_robin":
            least = min((each.inflight + 1) / each.weight for each in candidates)
            candidates = [each for each in candidates if (each.inflight + 1) / each.weight <= least]
        credit = self._credit
        for each in candidates:
            credit[each.name] = credit.get(each.name, 0) + each.weight
        chosen = max(candidates, key=lambda each: credit[each.name])
        credit[chosen.name] -= sum(each.weight for each in candidates)
        return chosen

    def _pick_by_prefix(self, candidates: Sequence[Chosen], prompt_prefix: bytes) -> Chosen:
        """Return the first candidate along the ring that is not overloaded."""
        weights = sum(each.weight for each in candidates)
        load = sum(each.inflight for each in candidates) + 1
        free = {
            each.name: each for each in candidates if each.inflight < ceil(_MAX_OVERLOAD * load * each.weight / weights)
        }
        start = bisect_left(self._ring, (_hash(prompt_prefix), ""))
        for step in range(start, start + len(self._ring)):
            name = self._ring[step % len(self._ring)][1]
            if name in free:
                return free[name]
        raise AssertionError("every candidate is over its share; this is a bug")


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


class _Message(msgspec.Struct):
    role: str = ""


def prompt_prefix(document: JsonObject) -> bytes:
    """Return the beginning of a prompt, the same at every turn of a conversation; empty if there is no prompt."""
    try:
        parts = [_until_user(document.get(name) or b"") for name in _PROMPT_MEMBERS]
    except (ValueError, RecursionError):
        return b""
    return b"".join(parts)[:_MAX_PREFIX_BYTES]


def _until_user(value: bytes) -> bytes:
    """Return the messages of a list up to the first one of the user: later turns add only to the others."""
    if not value.startswith(b"[") or has_more_members(value, MAX_MEMBERS):
        return value
    prefix = []
    for message in msgspec.json.decode(value, type=list[msgspec.Raw]):
        prefix.append(bytes(message))
        if prefix[-1].startswith(b"{") and msgspec.json.decode(message, type=_Message).role == "user":
            break
    return b"".join(prefix)
