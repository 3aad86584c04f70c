"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.filesize import decimal

from appliance.planner.layouts import describe
from appliance.planner.memory import RankPlan
from appliance.planner.planner import Plan


def report(plan: Plan) -> str:
    """Return facts about the model, then a row for each kind of rank and for each sequence length."""
    count = f", {_count(plan.parameters)} parameters" if plan.parameters else ""
    title = f"{plan.model}: {plan.architecture}{count} in {plan.dtype}"
    return "\n".join([title, *_facts(plan), "", *_ranks(plan), *_concurrency(plan)])


def _facts(plan: Plan) -> Iterator[str]:
    read = f"{decimal(plan.read_bytes)} of {decimal(plan.size_bytes)} in {plan.files} files read"
    yield f"  source       {plan.source}: {read}"
    yield f"  layout       {describe(plan.layout)} on {plan.hardware}{f': {plan.reason}' if plan.reason else ''}"
    if not plan.kv_blocks and not plan.kv_token_bytes:
        yield "  KV cache     none: the model is an encoder"
    else:
        yield f"  KV cache     {plan.kv_token_bytes:,} bytes a token, {plan.kv_tokens:,} tokens in each copy"
        yield f"  longest text {plan.longest:,} tokens; max_model_len is {plan.max_model_len:,}"
    times = plan.timing
    download = (
        f"{_seconds(times.download_seconds)} at {times.gbit:g} Gbit/s" if plan.disk_bytes else "the files are local"
    )
    yield f"  download     {decimal(plan.disk_bytes)}, {download}; loading takes about {_seconds(times.load_seconds)}"


def _ranks(plan: Plan) -> Iterator[str]:
    estimated = "" if plan.hardware.is_cpu else " (estimated)"
    rows: list[Sequence[str]] = [("rank", "weights", f"activations{estimated}", "KV cache", "total", "budget")]
    parts = groupby(plan.ranks, key=lambda rank: (rank.weight_bytes, rank.reserve_bytes, rank.kv_cache_bytes))
    for sizes, ranks in parts:
        cells = (f"{size / 2**30:.2f} GiB" for size in (*sizes, sum(sizes), plan.budget_bytes))
        rows.append((_span(list(ranks)), *cells))
    return _aligned(rows)


def _concurrency(plan: Plan) -> Iterator[str]:
    if plan.concurrency:
        yield ""
        rows = [("sequence length", "concurrent sequences")]
        rows += [(f"{tokens:,}", f"{count:,.1f}") for tokens, count in plan.concurrency.items()]
        yield from _aligned(rows)


def _span(ranks: Sequence[RankPlan]) -> str:
    first, last = ranks[0], ranks[-1]
    sides = (
        ("data", first.data, last.data),
        ("stage", first.pipeline, last.pipeline),
        ("tensor", first.tensor, last.tensor),
    )
    parts = [f"{name} {low}" if low == high else f"{name} {low}-{high}" for name, low, high in sides if high]
    return " ".join(parts) or "0"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  " + "  ".join((first.ljust(widths[0]), *cells))


def _count(number: int) -> str:
    return f"{number / 10**9:.2f} billion" if number >= 10**9 else f"{number / 10**6:.1f} million"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
