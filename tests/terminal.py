"""A command on a pseudo-terminal, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from server_process import environment

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """`appliance` with these words on a terminal of 80 columns; close it after use."""

    def __init__(self, *words: str, folder: Path, columns: int = 80, **variables: str) -> None:
        self._fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "appliance", *words],
            cwd=folder,
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env=environment(TERM="xterm", **variables),
        )
        os.close(child)
        self.raw = ""

    @property
    def text(self) -> str:
        """Everything it wrote, without the codes of colors and cursors."""
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Read until it has written the text."""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} is not in:\n{self.text}")

    def type(self, text: str) -> None:
        """Send what a person types."""
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, seconds: float = 120) -> int:
        """Read until the command ends, and return its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(max(1, deadline - time.monotonic()))

    def close(self) -> None:
        """End the command."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._fd)

    def _read(self, deadline: float) -> bool:
        """Read what is there; False at the end, and after the deadline."""
        if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)
