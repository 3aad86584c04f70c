"""What a fault did to a server: before, after, and whether it answers as if nothing had been."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
from server_process import ServerProcess, wait_until

MIB = 1 << 20

# What Python's and malloc's arenas may keep of a storm: bounded, and far below what any of the faults brings along.
FLAT_BYTES = 96 * MIB

# Connections close a moment after their clients, and threads of a pool stay.
_SETTLE_SECONDS = 20.0
_SPARE_DESCRIPTORS = 8


@dataclass(frozen=True, slots=True)
class Vitals:
    """A server's process tree, in numbers."""

    rss_bytes: int
    descriptors: int
    processes: int

    @classmethod
    def of(cls, server: ServerProcess) -> Vitals:
        """At this moment."""
        root = psutil.Process(server.process.pid)
        tree = [root, *root.children(recursive=True)]
        rss = sum(process.memory_info().rss for process in tree)
        return cls(rss, root.num_fds(), len(tree))


@dataclass(slots=True)
class Row:
    """One line of the table."""

    fault: str
    happened: str = ""
    seconds: float | None = None
    """From the end of the fault to a right answer, or to what stands for it."""
    before: Vitals | None = None
    after: Vitals | None = None

    def cells(self) -> tuple[str, ...]:
        """As they are printed."""
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        rss = [f"{each.rss_bytes / MIB:.0f}" if each else "" for each in (self.before, self.after)]
        return self.fault, self.happened, seconds, *rss


@dataclass(slots=True)
class Ledger:
    """All rows of a run."""

    rows: list[Row] = field(default_factory=list)

    def row(self, fault: str) -> Row:
        """A new line."""
        self.rows.append(Row(fault))
        return self.rows[-1]

    @contextlib.contextmanager
    def survived(
        self, fault: str, server: ServerProcess, answers: Callable[[ServerProcess], bool], *, seconds: float = 60
    ) -> Iterator[Row]:
        """Inflict a fault in the block; afterwards the server answers rightly and holds no more than before."""
        assert answers(server), server.log_tail()
        row = self.row(fault)
        row.before, offset = Vitals.of(server), server.log.stat().st_size
        yield row
        row.seconds = wait_until(lambda: answers(server), seconds, server.log_tail)
        row.after = _settled(server, row.before)
        said = server.log.read_bytes()[offset:].decode()
        assert row.after.rss_bytes < row.before.rss_bytes + FLAT_BYTES, row
        assert row.after.descriptors <= row.before.descriptors + _SPARE_DESCRIPTORS, row
        assert row.after.processes == row.before.processes, row
        assert [line for line in said.splitlines() if "Traceback" in line or "request.crashed" in line] == []

    def table(self) -> list[str]:
        """Its lines, columns aligned."""
        head = ("fault", "what happened", "seconds to recover", "RSS before, MiB", "after")
        lines = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _settled(server: ServerProcess, before: Vitals) -> Vitals:
    """Once what closes late has closed."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        now = Vitals.of(server)
        is_calm = now.descriptors <= before.descriptors + _SPARE_DESCRIPTORS and now.processes == before.processes
        if is_calm or time.monotonic() > deadline:
            return now
        time.sleep(0.2)
