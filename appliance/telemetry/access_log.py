"""The access log: one event for each request that has ended."""

from __future__ import annotations

import random

import structlog

from appliance.config.telemetry import AccessLogConfig
from appliance.core.request_context import RequestContext

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# A tenth of a millisecond: finer than any wait that matters, and short.
_DIGITS = 4


class AccessLog:
    """Logs a sample of the requests, and all that fail; `config` may be replaced at any time."""

    def __init__(self, config: AccessLogConfig) -> None:
        self.config = config

    def log(self, context: RequestContext) -> None:
        """Log a request that has ended, unless it is a probe or not in the sample."""
        has_failed = context.outcome >= 400 or context.outcome == 0
        if context.is_probe or not (has_failed or random.random() < self.config.sample):  # noqa: S311 - not a secret
            return
        log.info("request.ended", **_fields(context))


def _fields(context: RequestContext) -> dict[str, object]:
    """Return the fields of the event; unknown values are omitted."""
    fields: dict[str, object] = {
        "method": context.method or None,
        "path": context.path,
        "status": context.status or 0,
        "grpc_status": context.grpc_status,
        "late_status": context.late_status,
        "error": context.error,
        "refused": context.refused,
        "protocol": context.protocol,
        "model": context.model,
        "operation": context.operation,
        "key": context.key,
        "streamed": context.is_streamed or None,
        "seconds": _since(context, context.ended),
        "admitted_seconds": _since(context, context.admitted),
        "first_seconds": _since(context, context.first),
        "sequences": context.sequences if context.sequences > 1 else None,
        "prompt_tokens": context.prompt_tokens,
        "cached_tokens": context.cached_tokens,
        "output_tokens": context.output_tokens,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _since(context: RequestContext, time: float | None) -> float | None:
    return None if time is None else round(time - context.began, _DIGITS)
