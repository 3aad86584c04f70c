"""
`executor: ray`, as far as a machine without GPUs can show: the ranks' places, by vLLM's own code in a real cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faults.confined import require_root
from reference_servers import environment

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.core.errors import MissingExtraError
from appliance.core.model import SINGLE_FRONT_END
from appliance.engines.vllm.engine import prepare
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.fork_server import StartupTimings
from appliance.engines.vllm.multi_frontend import FrontendRendezvous

PROGRAM = Path(__file__).parent / "ray_cluster.py"


@pytest.mark.faults
def test_each_rank_gets_a_gpu_of_the_cluster(pytestconfig: pytest.Config, divisible: Path) -> None:
    """Two groups of two ranks are placed on the four GPUs of two machines, one each; without a cluster none is made up.

    It is in a network of its own, because Ray would listen on this machine's address, and its processes are the only
    ones it sees, so that they end with it.
    """
    require_root()
    packages = environment(pytestconfig, "ray", "ray==2.60.0").parents[1] / "lib" / f"python3.{sys.version_info[1]}"
    program = [sys.executable, str(PROGRAM), str(divisible)]
    alone = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # Ray's sockets lie there, whose names may not be long.
    with TemporaryDirectory(dir="/tmp") as folder:
        own = {"PYTHONPATH": str(packages / "site-packages"), "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
        done = subprocess.run(
            [*alone, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *program],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["executor"] == "RayExecutorV2"
    assert shown["without"] == "refused"
    assert shown["bundles"] == [{"GPU": 1.0}] * 4
    assert sorted(Counter(shown["machines"]).values()) == [2, 2]


def test_ray_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """The fault says what to install, before anything starts."""
    if find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    setup = EngineSpec("tiny", tmp_path, LayoutConfig(executor="ray"), EngineConfig())

    with pytest.raises(MissingExtraError, match=r"appliance\[ray\]"):
        prepare(setup, FrontendRendezvous(SINGLE_FRONT_END, "tiny"), StartupTimings())
