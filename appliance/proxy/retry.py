"""
How many retries there may be: a share of the traffic, so that retries never are the load that keeps upstreams down.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from appliance.config.base import BaseConfig
from appliance.core.errors import GatewayError, GatewayTimeoutError, UnreachableError
from appliance.core.model import Operation

Status = Annotated[int, Field(ge=400, le=599)]

# Whoever has little traffic can retry too; whoever had much cannot save up for an outage.
_LEAST, _MOST = 3.0, 100.0


GENERATIONS = frozenset(
    {
        Operation.CHAT_COMPLETION,
        Operation.COMPLETION,
        Operation.RESPONSE,
        Operation.MESSAGE,
        Operation.SPEECH,
        Operation.IMAGE,
        Operation.IMAGE_EDIT,
        Operation.IMAGE_VARIATION,
        Operation.TRANSCRIPTION,
        Operation.TRANSLATION,
    }
)
"""
What takes long, costs much, and may come out otherwise when it is asked again.
"""

# Whoever says these has begun nothing.
_REFUSALS = frozenset({429, 503})


class RetryConfig(BaseConfig):
    """
    When a request is asked again: only before the first byte of an answer, and elsewhere if there is an elsewhere.
    """

    attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """Most further tries of one request; 0 never tries again."""

    statuses: tuple[Status, ...] = (429, 502, 503, 504)
    """Answers that are tried again; 429 only at another upstream."""

    generations: bool = False
    """
    Whether text, speech and images are asked for again although an upstream may have begun to make them, which are then
    made and billed more than once. Unset asks again only where nothing was begun: no connection came about, or the
    answer is 429 or 503.
    """

    budget_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Most retries as a share of all requests, beyond a few."""

    backoff_seconds: Annotated[float, Field(ge=0)] = 0.1
    """Wait before the second try at the same upstream, in seconds; it doubles with each further one."""

    def allows(self, outcome: int | GatewayError, *, is_generation: bool) -> bool:
        """Whether a request may be tried again after a status, or after no answer."""
        is_cautious = is_generation and not self.generations
        if isinstance(outcome, int):
            return outcome in self.statuses and (not is_cautious or outcome in _REFUSALS)
        if is_cautious:
            return isinstance(outcome, UnreachableError)
        # Who has waited until a timeout does not want to wait as long again.
        return not isinstance(outcome, GatewayTimeoutError)


class RetryBudget:
    """Each request pays in a share of a retry, each retry takes out one."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = _LEAST

    def pay_in(self) -> None:
        """A request came."""
        self._saved = min(self._saved + self._share, _MOST)

    def take(self) -> bool:
        """Whether a retry may be made; it is counted."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
