"""What parsing costs: time against size for each parser of a stranger's bytes, in the shapes that would hurt it.

``just bench parsing`` prints a table. Time is of the thread that parses, the best of three; with a parser that is
linear the last column stays about 1: what a byte costs at the limit, by what it costs at a sixteenth of it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from collections.abc import Sequence

from parsers import Parser, Shape, parsers

LIMIT_BYTES = 32 * 1024 * 1024
SMALLEST_BYTES = 1024

# The clock of a thread has steps, and a first run fills caches.
_RUNS = 3


def measured(parser: Parser, shape: Shape, size: int) -> float:
    """Seconds of the processor to parse a body of this shape and size, in bytes."""
    body = shape(size)
    return min(_timed(parser, body) for _ in range(_RUNS))


def sizes(limit: int) -> Sequence[int]:
    """From the smallest to the limit, in steps of 32, and a sixteenth of the limit."""
    found = {limit // 16, limit}
    size = SMALLEST_BYTES
    while size < limit:
        found.add(size)
        size *= 32
    return sorted(found)


def _timed(parser: Parser, body: bytes) -> float:
    # The garbage collector goes over the whole process, which has nothing to do with this body.
    gc.disable()
    began = time.thread_time()
    try:
        with contextlib.suppress(*parser.errors):
            parser.parse(body)
        return time.thread_time() - began
    finally:
        gc.enable()


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--limit", type=int, default=LIMIT_BYTES, help="largest body in bytes")
    options.add_argument("--only", default="", help="parsers with this in their name")
    chosen = options.parse_args()
    steps = sizes(chosen.limit)
    heads = ["parser", "shape", *(f"{step / 1024:g} KiB, ms" for step in steps), "growth of a byte"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for parser in parsers():
        if chosen.only not in parser.name:
            continue
        for name, shape in parser.shapes.items():
            times = {step: measured(parser, shape, step) for step in steps}
            growth = times[chosen.limit] / max(times[chosen.limit // 16], 1e-6) / 16
            cells = [parser.name, name, *(f"{1000 * each:.2f}" for each in times.values()), f"{growth:.1f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
