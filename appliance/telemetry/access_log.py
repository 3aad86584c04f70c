"""One event in the log for each request that ended."""

from __future__ import annotations

import random

import structlog

from appliance.config.telemetry import AccessLogConfig
from appliance.core.request_context import RequestContext

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A tenth of a millisecond: finer than any wait that matters, and short in the line.
_DIGITS = 4


class AccessLog:
    """Writes it."""

    def __init__(self, config: AccessLogConfig) -> None:
        self._config = config

    def apply(self, config: AccessLogConfig) -> None:
        """Go by this section from now on."""
        self._config = config

    def tell(self, record: RequestContext) -> None:
        """Log a request that has ended, if it is one of those to log."""
        has_failed = record.outcome >= 400 or record.outcome == 0
        if record.is_probe or not (has_failed or random.random() < self._config.sample):  # noqa: S311 - not a secret
            return
        log.info("request.ended", **_facts(record))


def _facts(record: RequestContext) -> dict[str, object]:
    """What is known of it; what is unknown, or not so, is left out."""
    facts: dict[str, object] = {
        "method": record.method or None,
        "path": record.path,
        "status": record.status or 0,
        "grpc_status": record.grpc_status,
        "late_status": record.late_status,
        "error": record.error,
        "refused": record.refused,
        "protocol": record.protocol,
        "model": record.model,
        "operation": record.operation,
        "key": record.key,
        "streamed": record.is_streamed or None,
        "seconds": _since(record, record.ended),
        "admitted_seconds": _since(record, record.admitted),
        "first_seconds": _since(record, record.first),
        "sequences": record.sequences if record.sequences > 1 else None,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _since(record: RequestContext, moment: float | None) -> float | None:
    return None if moment is None else round(moment - record.began, _DIGITS)
