"""
How many retries there may be: a share of the traffic, so that retries never are the load that keeps upstreams down.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from appliance.section import Section

Status = Annotated[int, Field(ge=400, le=599)]

# Whoever has little traffic can retry too; whoever had much cannot save up for an outage.
_LEAST, _MOST = 3.0, 100.0


class RetrySection(Section):
    """
    When a request is asked again: only before the first byte of an answer, and elsewhere if there is an elsewhere.
    """

    attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """Most further tries of one request; 0 never tries again."""

    statuses: tuple[Status, ...] = (429, 502, 503, 504)
    """Answers that are tried again; 429 only at another upstream."""

    budget_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Most retries as a share of all requests, beyond a few."""

    backoff_seconds: Annotated[float, Field(ge=0)] = 0.1
    """Wait before the second try at the same upstream, in seconds; it doubles with each further one."""


class Budget:
    """
    Each request pays in a share of a retry, each retry takes out one.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = _LEAST

    def pay_in(self) -> None:
        """
        A request came.
        """
        self._saved = min(self._saved + self._share, _MOST)

    def take(self) -> bool:
        """
        Whether a retry may be made; it is counted.
        """
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
