"""The command `top`: shows a running server live."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from appliance.cli.bench import milliseconds
from appliance.cli.remote import RemoteError, RemoteServer, api_key_option, connected, url_argument

# To the upper left corner, and erase what is below (ECMA-48, CUP and ED).
_REDRAW = "\x1b[H\x1b[J"

# What `--once` waits between its two looks at the counters.
_ONCE_SECONDS = 1.0

_HEAD = ("MODEL", "STATE", "RUNNING", "WAITING", "OUT TOK/S", "IN TOK/S", "KV CACHE", "FIRST TOKEN", "PER TOKEN")

_FIRST_TOKEN = "appliance_time_to_first_token_seconds"  # noqa: S105 - a metric
_PER_TOKEN = "appliance_time_per_output_token_seconds"  # noqa: S105 - a metric

Buckets = Mapping[float, float]
"""The counts of a histogram by their upper bounds, each with those below it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server at one moment."""

    url: str
    taken: float
    health: Mapping[str, Any]  # Any: JSON
    tokens: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By model and direction."""
    cache_use: Mapping[str, float] = field(default_factory=dict)
    latencies: Mapping[tuple[str, str], Buckets] = field(default_factory=dict)
    """By metric and model."""
    metrics_error: RemoteError | None = None


@click.command()
@url_argument
@api_key_option
@click.option("--once", is_flag=True, help="Print the server as it is now, and end.")
@click.option("--interval", type=click.FloatRange(0.1), default=2, show_default=True, help="Seconds between two looks.")
def top(url: str, api_key: str | None, once: bool, interval: float) -> None:
    """Show a running server at URL live.

    Models with their states, requests, tokens per second, use of the KV cache, and latencies (the median of what was
    measured since the last look), from its /readyz and /metrics. The default URL is http://localhost:8080. Ctrl-C
    ends it.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(url, api_key, _ONCE_SECONDS if once else interval, is_once=once))


async def _watch(url: str, api_key: str | None, interval: float, *, is_once: bool) -> None:
    is_terminal = sys.stdout.isatty() and not is_once
    async with connected(url, api_key) as server:
        last = await snapshot(server)
        while True:
            await asyncio.sleep(interval)
            try:
                now = await snapshot(server)
                text = as_text(last, now)
                last = now
            except RemoteError as error:
                if is_once:
                    raise
                # It may come back.
                text = str(error)
            click.echo(f"{_REDRAW if is_terminal else ''}{text}")
            if is_once:
                if now.metrics_error is not None:
                    raise now.metrics_error
                return


async def snapshot(server: RemoteServer) -> Snapshot:
    """The server now.

    Raises:
        RemoteError: it cannot be asked, or is no appliance.
    """
    health = await server.get_json("/readyz", 200, 503)
    taken = time.monotonic()
    if not isinstance(health, dict) or "status" not in health:
        raise RemoteError(f"{server.url}/readyz is not that of an appliance; check the URL")
    try:
        metrics = await server.get("/metrics")
    except RemoteError as error:
        return Snapshot(server.url, taken, health, metrics_error=error)
    return Snapshot(server.url, taken, health, *parsed(metrics))


def parsed(
    metrics: str,
) -> tuple[Mapping[tuple[str, str], float], Mapping[str, float], Mapping[tuple[str, str], Buckets]]:
    """The tokens, the use of the caches and the latencies in a page of metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    tokens: dict[tuple[str, str], float] = {}
    cache_use: dict[str, float] = {}
    latencies: defaultdict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == "appliance_tokens_total":
                tokens[labels["model"], labels["direction"]] = sample.value
            elif sample.name == "vllm:kv_cache_usage_perc":
                # The fullest of several engines.
                name = labels["model_name"]
                cache_use[name] = max(sample.value, cache_use.get(name, 0.0))
            elif sample.name in (f"{_FIRST_TOKEN}_bucket", f"{_PER_TOKEN}_bucket"):
                latencies[family.name, labels["model"]][float(labels["le"])] = sample.value
    return tokens, cache_use, latencies


def as_text(before: Snapshot, now: Snapshot) -> str:
    """The server as a table, and why it is not ready."""
    models: Sequence[Mapping[str, Any]] = now.health.get("models") or ()  # Any: JSON
    rows = [_HEAD, *(tuple(_cells(before, now, model)) for model in models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    notes = [f"{each['name']}: {each['reason']}" for each in models if each["state"] != "ready" and "reason" in each]
    if not models:
        notes.append("the server shows its models only to a client with a key: --api-key or OPENAI_API_KEY")
    if now.metrics_error is not None:
        notes.append(f"no metrics: {now.metrics_error}")
    head = f"{now.url} is {now.health['status']}, {time.strftime('%H:%M:%S')}"
    return "\n".join([head, "", *(lines if models else ()), *([""] if notes and models else ()), *notes])


def _cells(before: Snapshot, now: Snapshot, model: Mapping[str, Any]) -> Iterator[str]:  # Any: JSON
    name = str(model["name"])
    yield from (name, _state(model), *(str(model.get(key, "-")) for key in ("running", "queued")))
    for direction in ("output", "input"):
        total, earlier = now.tokens.get((name, direction)), before.tokens.get((name, direction), 0.0)
        # Fewer tokens than before are those of a server that has started again.
        seconds = now.taken - before.taken
        yield "-" if total is None else f"{max(0.0, total - earlier) / seconds:.0f}"
    yield f"{now.cache_use[name]:.0%}" if name in now.cache_use else "-"
    for metric in (_FIRST_TOKEN, _PER_TOKEN):
        yield milliseconds(median(before.latencies.get((metric, name), {}), now.latencies.get((metric, name), {})))


def _state(model: Mapping[str, Any]) -> str:  # Any: JSON
    progress = model.get("progress") or {}
    total = progress.get("total_bytes")
    return f"{model['state']} {progress['fetched_bytes'] / total:.0%}" if total else str(model["state"])


def median(before: Buckets, now: Buckets) -> float | None:
    """The median of what a histogram counted between two moments, or of all where that is nothing; None if empty."""
    counted = {bound: count - before.get(bound, 0.0) for bound, count in sorted(now.items())}
    if not counted or max(counted.values()) <= 0:
        counted = dict(sorted(now.items()))
    half = max(counted.values(), default=0.0) / 2
    lower = below = 0.0
    for bound, count in counted.items():
        if half and count >= half:
            # Of what is above the last bound, only that is known.
            return lower if bound == float("inf") else lower + (bound - lower) * (half - below) / (count - below)
        lower, below = bound, count
    return None
