"""`--offline` in a network of its own: the model is served, and not one packet leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# A way out is there and leads nowhere, so whatever tries to take it is counted.
NETWORK = """
set -e
ip link set lo up
ip link add away type veth peer name nowhere
for link in away nowhere; do
  sysctl -qw "net.ipv6.conf.$link.disable_ipv6=1" || true
  ip link set "$link" up
done
ip addr add 192.0.2.1/24 dev away
ip route add default dev away
"""
COUNT = """awk '$1 == "away:" {print "left:", $11}' /proc/net/dev\n"""


def _run(script: str) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--net", "bash", "-c", f"{NETWORK}{script}\n{COUNT}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


@pytest.fixture(scope="module")
def _network() -> None:
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("a network namespace needs root, unshare and ip")
    if (tried := _run("true")).returncode != 0:
        pytest.skip(f"no network namespace here: {tried.stderr.strip()}")


@pytest.mark.usefixtures("_network")
def test_whoever_tries_to_leave_is_counted() -> None:
    """The test below can fail: one connection, be it never answered, shows."""
    done = _run("timeout 2 bash -c 'echo > /dev/tcp/203.0.113.5/80' || true")

    assert int(done.stdout.rpartition("left:")[2]) > 0


@pytest.mark.usefixtures("_network")
def test_a_model_is_served_offline_without_a_packet(smollm2: Path, chat_file: Path) -> None:
    """
    From a fetched wheel over the engine's start to the answer: neither we nor vLLM nor the hub's library ask anybody.
    """
    done = _run(f"{sys.executable} -m appliance smoke {chat_file} --set storage.offline=true")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "'Paris' in it" in done.stdout
    assert done.stdout.rstrip().endswith("left: 0")
