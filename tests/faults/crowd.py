"""Many connections that only stand there, held by processes of their own: one has not descriptors enough for both ends.

``python crowd.py PORT COUNT`` opens COUNT of them from several addresses of the loopback, says how many there are, and
holds them until its input ends.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

_EACH = 2500


@contextlib.contextmanager
def crowd(port: int, count: int) -> Iterator[int]:
    """How many connections stand there."""
    with contextlib.ExitStack() as stack:
        holders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, str(port), str(min(_EACH, count - start)), f"127.0.1.{number + 1}"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for number, start in enumerate(range(0, count, _EACH))
        ]
        try:
            yield sum(int(holder.stdout.readline()) for holder in holders if holder.stdout)
        finally:
            for holder in holders:
                assert holder.stdin is not None
                holder.stdin.close()


def main(port: int, count: int, address: str) -> None:
    """Hold connections until the input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held: list[socket.socket] = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(address, 0)))
    sys.stdout.write(f"{len(held)}\n")
    sys.stdout.flush()
    sys.stdin.read()
    for each in held:
        each.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
