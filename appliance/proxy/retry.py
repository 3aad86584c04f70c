"""
How many retries there may be: a share of the traffic, so that retries never are the load that keeps upstreams down.
"""

from __future__ import annotations

from appliance.config.upstreams import RetryConfig
from appliance.core.errors import GatewayError, GatewayTimeoutError, UnreachableError
from appliance.core.model import Operation

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


def may_retry(config: RetryConfig, outcome: int | GatewayError, *, is_generation: bool) -> bool:
    """Return whether a request may be sent again after this status, or after this failure to get a response."""
    is_cautious = is_generation and not config.generations
    if isinstance(outcome, int):
        return outcome in config.statuses and (not is_cautious or outcome in _REFUSALS)
    if is_cautious:
        return isinstance(outcome, UnreachableError)
    # A client that waited until a timeout does not want to wait as long again.
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
