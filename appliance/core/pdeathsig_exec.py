"""Becomes another command that the kernel kills when the process that started it dies.

Run by its path, as ``python -I -S pdeathsig_exec.py PARENT_PID COMMAND...``: it imports nothing of ours, so that it
starts within milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# linux/prctl.h
PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that died before the line above sends no signal any more.
    if os.getppid() == int(sys.argv[1]):
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - without a shell is the point
