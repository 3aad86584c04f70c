"""Which requests are retried, and how many: a share of the traffic, so that retries do not keep an upstream down."""

from __future__ import annotations

from appliance.config.upstreams import RetryConfig
from appliance.core.errors import GatewayError, GatewayTimeoutError, UnreachableError
from appliance.core.model import TEXT_GENERATIONS, Operation

# A model with little traffic can retry too; a model with much cannot save up retries for an outage.
_INITIAL, _MAX = 3.0, 100.0

# With these the upstream has not started to work on the request.
_REJECTIONS = frozenset({429, 503})

# Slow and expensive, and the result may differ the second time.
_EXPENSIVE_OPERATIONS = TEXT_GENERATIONS | {
    Operation.SPEECH,
    Operation.IMAGE,
    Operation.IMAGE_EDIT,
    Operation.IMAGE_VARIATION,
    Operation.TRANSCRIPTION,
    Operation.TRANSLATION,
}


def is_retryable(config: RetryConfig, outcome: int | GatewayError, operation: Operation) -> bool:
    """Return whether a request may be sent again after this status, or after this failure to get a response."""
    must_not_repeat = operation in _EXPENSIVE_OPERATIONS and not config.generations
    if isinstance(outcome, int):
        return outcome in config.statuses and (not must_not_repeat or outcome in _REJECTIONS)
    if must_not_repeat:
        return isinstance(outcome, UnreachableError)
    # A client that waited until a timeout does not want to wait as long again.
    return not isinstance(outcome, GatewayTimeoutError)


class RetryBudget:
    """Each request adds a share of a retry, each retry takes one."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = _INITIAL

    def add_request(self) -> None:
        """Count a request."""
        self._saved = min(self._saved + self._share, _MAX)

    def take_retry(self) -> bool:
        """Return whether a retry is allowed; if so it is counted."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
