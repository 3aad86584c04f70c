"""The figures of `front_end.py` as a table and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bench import chart

Runs = Mapping[str, Sequence[Mapping[str, float]]]
"""The figures of each run, by the server they are of."""

OURS = "appliance"

_TITLES = {
    "fake": "A fake engine: one token per stream every 20 ms",
    "real": "A real engine: SmolLM2-135M on the CPU",
    "prompts": "Long prompts: 20 per second, of 44,000 tokens each, beside 64 streams of the fake engine",
    "workers": "Several front ends: 1,000 streams, 100,000 tokens per second of the fake engine",
}

_FIRST_COLUMNS = {"prompts": "load", "workers": "front ends"}

# What is shown, and how.
_COLUMNS = {
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "processor_us_per_token": ("processor µs/token", "{:,.0f}"),
    "first_p50_ms": ("first token p50 ms", "{:,.1f}"),
    "first_p99_ms": ("p99 ms", "{:,.1f}"),
    "longest_gap_ms": ("longest gap ms", "{:,.0f}"),
    "resident_mb": ("resident MB", "{:,.0f}"),
}

_PROMPT_COLUMNS = {
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "gap_p50_ms": ("gap p50 ms", "{:,.1f}"),
    "gap_p99_ms": ("gap p99 ms", "{:,.1f}"),
    "longest_gap_ms": ("longest gap ms", "{:,.0f}"),
    "probe_p50_ms": ("probe p50 ms", "{:,.1f}"),
    "probe_p99_ms": ("probe p99 ms", "{:,.1f}"),
    "answered_per_second": ("prompts answered/s", "{:,.1f}"),
    "refused_per_second": ("refused/s", "{:,.1f}"),
    "prompt_first_p50_ms": ("their first token p50 ms", "{:,.0f}"),
    "prompt_first_p99_ms": ("p99 ms", "{:,.0f}"),
    "processor_share": ("cores", "{:.2f}"),
}

_WORKER_COLUMNS = {**_COLUMNS, "processor_share": ("cores", "{:.2f}")}

# What is drawn, without the loads beside which the others could not be seen.
_PANELS = (
    ("processor_us_per_token", "Processor µs per token", ("16", "64", "256", "1000")),
    ("tokens_per_second", "Tokens per second", ("64", "256", "1000")),
    ("first_p50_ms", "First token, median ms", ("16", "64", "256")),
)


def write(figures: Path) -> str:
    """Write both beside the figures; the table."""
    engines: Mapping[str, Mapping[str, Runs]] = json.loads(figures.read_text())
    parts = [_HEAD.format(plot=figures.with_suffix(".svg").name)]
    parts += [_config(engine, levels) for engine, levels in engines.items()]
    parts.append(_PROFILE)
    text = "\n".join(parts)
    figures.with_suffix(".md").write_text(text)
    if "fake" in engines:
        figures.with_suffix(".svg").write_text(_plot(engines["fake"]))
    return text


_HEAD = """\
# Front end

The cost of serving in addition to the engine: Appliance, vLLM's Python server (`vllm`) and vLLM's Rust front end
(`vllm-rs`), all with their defaults, in front of the same engine. `just bench front-end` generates this page. Each
figure is the median of alternating runs, and each ratio (Appliance to the other) is the median over the pairs of runs.

With the fake engine, the server has one core, and the engine and the clients have another one. Each client sends its
next request as soon as it has a response. The engine produces 12,800 tokens per second for 256 streams and 50,000 for
1,000 streams. *Whole* are responses of 16 tokens without streaming, whose first token is their last; *long* are prompts
of 8,000 tokens. The longest gap is the longest time that a stream waited after its first bytes. Processor time is that
of all processes of the server, including the kernel's; with the real engine it includes the engine's.

Long prompts come at even intervals, whatever became of the ones before. Gaps are the times between the events of the
streams that run meanwhile, probes are `/livez` and `/readyz`, or `/health` of the other servers. A prompt is answered
if its first token came within the time of the measurement; *refused* are those with 429 or 503. Their tokenization is
most of what they cost: Hugging Face's tokenizers, which the servers in Python use, take about 50 ms for one, and
fastokens, which `vllm-rs` has built in, about 8 ms. Appliance is measured with its extra `fastokens`.

Several front ends (`server.workers`, `--api-server-count`, threads of `vllm-rs`) share the two cores with the engine
and the clients, which take up to a core themselves: with one core more, they would deliver more.

KServe's runtime is not in the table: `huggingfaceserver` is in no package registry, only in its image, and is made for
vLLM 0.24, whose internals it uses.

![Processor time per token, tokens per second and time to the first token]({plot})
"""

# Measured by hand: processor time of each thread, `perf record -e cpu-clock`, `py-spy record --gil`, and for requests
# the difference between responses of 128 and of 2,000 tokens.
_PROFILE = """\
## Where the time goes

`vllm-rs` takes less processor time. This is where ours goes, in µs per token. The shares are sampled, in runs of their
own, in which `vllm-rs` took 42 µs with 16 streams and 17 with 256.

| layer | 16 streams | 256 streams |
| --- | --- | --- |
| requests: routes, validation, template, tokens of the prompt, first and last event, access log | 27 | 5 |
| a step's message: receive and decode | 6 | 3 |
| tokens: text of each, and its time for the metrics | 12 | 5 |
| events: JSON, and handing them to the HTTP threads | 9 | 5.5 |
| metrics of a step | 3 | 0.5 |
| rest of the event loop | 4 | 0.5 |
| HTTP threads, in Rust; two thirds are the kernel's, for writing to sockets | 15 | 9.5 |
| ZeroMQ's thread | 4 | 0.5 |
| sum | 80 | 29.5 |

* A request takes 3.5 ms of Python with 16 streams, where six come in a second, and 1.9 ms where 150 do: its code is
  cold in the processor's caches. About a third of it is vLLM's: its request classes, chat template and engine request.
* The same holds for a step, which comes every 20 ms: its code is loaded for 16 tokens, or for 256.
* Responses of 2,000 tokens, which have few requests, take 16 µs per token with 256 streams; those of `vllm-rs` 15.

## Where the memory goes

The process that serves takes 440 to 455 MB (PSS), 405 of them memory of its own, and 5 seconds of processor time until
it answers. Its imports alone take 330 MB. Appliance leaves out of them what only engines use: PyTorch's compiler and
transformers' model classes, with SciPy, scikit-learn, pandas, SymPy, NetworkX and OpenCV. They are imported when they
are used, and would take 205 MB and 3 seconds more. The rest stays, because the code of vLLM that a front end runs
uses it. Of two front ends, each has its own copy.

| imported | MB |
| --- | --- |
| PyTorch, 61 of them to link its libraries | 113 |
| vLLM, and the models of its requests | 37 |
| Appliance | 25 |
| transformers | 23 |
| OpenAI's types | 13 |
| NumPy, aiohttp, Litestar, FastAPI, xgrammar, pydantic | 25 |
| others, Python itself, and the shared pages of libraries | 94 |
| the start of a model: tokenizer, templates, request validators, connections | 110 |

With a real engine there are two more processes: the engine core (3.3 GB for SmolLM2-135M), and the server that it is
forked from, which has imported all of vLLM (410 to 460 MB; it shares 258 MB with the core). The serving process cannot
be forked from that server, because it answers probes seconds before vLLM is imported: at 0.9 seconds of processor time.
A fork in its place would have to take over its connections, its downloads and the models that serve already. Vice
versa, the engine core cannot be forked from the serving process, which has threads by then.
"""


def _config(engine: str, levels: Mapping[str, Runs]) -> str:
    columns = {"prompts": _PROMPT_COLUMNS, "workers": _WORKER_COLUMNS}.get(engine, _COLUMNS)
    head = [_FIRST_COLUMNS.get(engine, "streams"), "server", *(title for title, _ in columns.values())]
    lines = [f"## {_TITLES[engine]}", "", _line(head), _line(["---"] * len(head))]
    for level, runs in levels.items():
        for name, each in runs.items():
            # Whole responses have no gaps.
            values = [
                form.format(value) if (value := _median(each, key)) else "-" for key, (_, form) in columns.items()
            ]
            lines.append(_line([_level(level), name, *values]))
        for other in [name for name in runs if name != OURS and OURS in runs]:
            ratios = ["-" if math.isnan(ratio := _ratio(runs, other, key)) else f"{ratio:.2f}" for key in columns]
            lines.append(_line([_level(level), f"ratio to {other}", *ratios]))
    faults = sum(run["faults"] for runs in levels.values() for each in runs.values() for run in each)
    return "\n".join([*lines, "", f"Responses that failed or had the wrong length: {faults:.0f}.", ""])


def _level(name: str) -> str:
    return f"{int(name):,}" if name.isdecimal() else {"short": "64 whole", "long": "16 long"}.get(name, name)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _median(runs: Sequence[Mapping[str, float]], key: str) -> float:
    """Zero where no run has it, as older ones lack what is measured since."""
    return median([run[key] for run in runs if key in run] or [0])


def _ratio(runs: Runs, other: str, key: str) -> float:
    """Not a number where either has none, as whole responses have no gaps."""
    pairs = zip(runs[OURS], runs[other], strict=True)
    return median(ours[key] / theirs[key] if key in ours and theirs.get(key) else math.nan for ours, theirs in pairs)


def _plot(levels: Mapping[str, Runs]) -> str:
    panels = []
    for key, title, wanted in _PANELS:
        shown = {level: levels[level] for level in wanted if level in levels}
        names = next(iter(shown.values()), {})
        bars = {name: [_median(runs[name], key) for runs in shown.values()] for name in names}
        panels.append(chart.Panel(title, [_level(level) for level in shown], bars))
    return chart.draw([panel for panel in panels if panel.places], "streams at once")
