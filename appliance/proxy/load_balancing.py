"""Which upstream gets a request."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil
from typing import Protocol, TypeVar

from appliance.config.upstreams import Balance

# Points on the ring for a weight of 1: enough that shares are even within a few percent.
_POINTS = 128

# Most load over the fair share (Mirrokni et al., "Consistent Hashing with Bounded Loads", 2016).
_OVERLOAD = 1.25


class Target(Protocol):
    """What is chosen among."""

    @property
    def name(self) -> str:
        """The same after a restart, and in every worker."""

    @property
    def weight(self) -> float:
        """Its share of the traffic, beside those of the others."""

    @property
    def inflight(self) -> int:
        """Requests under way."""


Chosen = TypeVar("Chosen", bound=Target)


class Balancer(Protocol):
    """A way to choose."""

    def pick(self, candidates: Sequence[Chosen], key: bytes) -> Chosen:
        """One of the candidates, of which there is at least one; `key` is the head of the prompt."""


def balancer(balance: Balance, targets: Sequence[Target]) -> Balancer:
    """The balancer of a name, for these targets and subsets of them."""
    match balance:
        case "least_inflight":
            return LeastInflight()
        case "round_robin":
            return RoundRobin()
        case "prefix_affinity":
            return PrefixAffinity(targets)


class LeastInflight:
    """The one with the fewest requests for its weight; equals take turns."""

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def pick(self, candidates: Sequence[Chosen], key: bytes) -> Chosen:
        """One of the candidates."""
        least = min((each.inflight + 1) / each.weight for each in candidates)
        return self._turns.pick([each for each in candidates if (each.inflight + 1) / each.weight <= least], key)


class RoundRobin:
    """Each in its turn, heavier ones more often and evenly spread (the "smooth" round robin that nginx uses)."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def pick(self, candidates: Sequence[Chosen], key: bytes) -> Chosen:  # noqa: ARG002 - the protocol of balancers
        """One of the candidates."""
        credit = self._credit
        for each in candidates:
            credit[each.name] = credit.get(each.name, 0) + each.weight
        chosen = max(candidates, key=lambda each: credit[each.name])
        credit[chosen.name] -= sum(each.weight for each in candidates)
        return chosen


class PrefixAffinity:
    """The same one for the same head of a prompt, as long as it has not much more than its share of the load.

    Consistent hashing: when an upstream leaves, only its own prompts move, and they come back to it.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        least = min(target.weight for target in targets)
        self._ring = sorted(
            (_hash(f"{target.name}/{number}".encode()), target.name)
            for target in targets
            for number in range(round(_POINTS * target.weight / least))
        )
        self._places = [place for place, _ in self._ring]
        self._without_key = LeastInflight()

    def pick(self, candidates: Sequence[Chosen], key: bytes) -> Chosen:
        """The first of the candidates with room, along the ring; without a prompt, the one with the least to do."""
        if not key:
            return self._without_key.pick(candidates, key)
        weights = sum(each.weight for each in candidates)
        load = sum(each.inflight for each in candidates) + 1
        free = {
            each.name: each for each in candidates if each.inflight < ceil(_OVERLOAD * load * each.weight / weights)
        }
        start = bisect_left(self._places, _hash(key))
        for step in range(start, start + len(self._ring)):
            name = self._ring[step % len(self._ring)][1]
            if name in free:
                return free[name]
        raise AssertionError("all are over their share; this is a bug")


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
