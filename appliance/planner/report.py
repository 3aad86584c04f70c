"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.filesize import decimal

from appliance.planner.layout_search import describe
from appliance.planner.memory_estimate import RankPlan
from appliance.planner.planner import Plan

_GIB = 2**30


def report(plan: Plan) -> str:
    """Return facts about the model, then a row for each kind of rank and for each sequence length."""
    return "\n".join([_title(plan), *_facts(plan), "", *_ranks(plan), *_contexts(plan)])


def _title(plan: Plan) -> str:
    count = f", {_count(plan.parameters)} parameters" if plan.parameters else ""
    return f"{plan.model}: {plan.architecture}{count} in {plan.dtype}"


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
    reserve = "" if plan.hardware.is_cpu else " (estimated)"
    rows: list[tuple[str, ...]] = [("rank", "weights", f"activations{reserve}", "KV cache", "total", "budget")]
    for (weights, work, cache), group in groupby(plan.ranks, key=_sizes):
        ranks = list(group)
        total = weights + work + cache
        rows.append((_span(ranks), *map(_gib, (weights, work, cache, total, plan.budget_bytes))))
    yield from _aligned(rows)


def _sizes(rank: RankPlan) -> tuple[int, int, int]:
    return rank.weight_bytes, rank.reserve_bytes, rank.kv_cache_bytes


def _contexts(plan: Plan) -> Iterator[str]:
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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  " + "  ".join((first, *rest))


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def _count(number: int) -> str:
    return f"{number / 10**9:.2f} billion" if number >= 10**9 else f"{number / 10**6:.1f} million"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
