"""
Servers in a place of their own: a mount namespace with a small disk, a network that can go silent, a memory limit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_MEMORY = Path("/sys/fs/cgroup/memory")

# Addresses for documentation and tests: https://www.rfc-editor.org/rfc/rfc5737.
HERE, THERE = "198.51.100.1", "198.51.100.2"


def require_root(*programs: str) -> None:
    """Skip where namespaces cannot be made, or a program is missing."""
    if os.geteuid():
        pytest.skip("needs root")
    for program in ("unshare", "ip", *programs):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def on_small_disk(folder: Path, mebibytes: int) -> list[str]:
    """What to put before a command that shall find a disk of this size at `folder`."""
    mount = f"mount -t tmpfs -o size={mebibytes}m,mode=1777 none '{folder}'"
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", f'{mount} && exec "$@"', "sh"]


@dataclass(frozen=True)
class Link:
    """A network of one cable: this machine at one end, `prefix` before a command puts it at the other."""

    namespace: str

    @property
    def prefix(self) -> list[str]:
        """What to put before a command that shall run at the other end."""
        return ["ip", "netns", "exec", self.namespace]

    def cut(self, port: int) -> None:
        """From now on packets to this port of ours vanish without a word, and those of connections there are."""
        for words in (["INPUT", "--sport"], ["OUTPUT", "--dport"]):
            run([*self.prefix, "iptables", "-A", words[0], "-p", "tcp", words[1], str(port), "-j", "DROP"])

    def mend(self) -> None:
        """Everything passes again."""
        run([*self.prefix, "iptables", "-F"])


@contextlib.contextmanager
def link() -> Iterator[Link]:
    """The cable, until the end of the block."""
    name = f"faults{os.getpid()}"
    near, far = f"vn{os.getpid()}", f"vf{os.getpid()}"
    run(["ip", "netns", "add", name])
    try:
        run(["ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name])
        run(["ip", "addr", "add", f"{HERE}/30", "dev", near])
        run(["ip", "link", "set", near, "up"])
        inside = ["ip", "-n", name]
        run([*inside, "addr", "add", f"{THERE}/30", "dev", far])
        run([*inside, "link", "set", far, "up"])
        run([*inside, "link", "set", "lo", "up"])
        yield Link(name)
    finally:
        # A namespace goes when the kernel finds the time, and its end of the cable with it.
        subprocess.run(["ip", "link", "del", near], capture_output=True, timeout=30, check=False)
        run(["ip", "netns", "del", name])


@contextlib.contextmanager
def memory_limit() -> Iterator[Path]:
    """A control group, of the first version, for processes that shall not have more memory than they have already."""
    if not os.access(_MEMORY, os.W_OK) or not (_MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("needs a memory controller that can be written")
    group = _MEMORY / f"faults{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def run(words: list[str]) -> None:
    """A command that must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
