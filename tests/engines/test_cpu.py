"""What an engine on a CPU is born with: chosen for the machine, unless the config or the environment says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.config.layout import LayoutConfig
from appliance.core.system import usable_cores
from appliance.engines.vllm.env import CpuProfile, is_cpu_build

ALONE = LayoutConfig()


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "LD_PRELOAD", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


def test_every_core_computes_unless_somebody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as a container may use; the variable goes over that, the config's key over both."""
    by_machine = CpuProfile.of(ALONE)
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    by_variable = CpuProfile.of(ALONE)
    by_key = CpuProfile.of(LayoutConfig(cpu_threads=3))

    assert (by_machine.threads, by_machine.overridden_by) == (usable_cores(), ())
    assert (by_variable.threads, by_variable.overridden_by) == (5, ("OMP_NUM_THREADS",))
    assert (by_key.threads, by_key.overridden_by) == (3, ("layout.cpu_threads",))


def test_a_variable_that_is_no_number_is_nobodys_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one too, as templates leave them."""
    for nonsense in ("", "many", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)

        assert CpuProfile.of(ALONE).threads == usable_cores()


def test_threads_that_wait_give_the_processor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intel's OpenMP is preloaded before what is preloaded already, and spins for a fifth of a millisecond at most."""
    monkeypatch.setenv("LD_PRELOAD", "/opt/libother.so")

    profile = CpuProfile.of(ALONE)

    first, second = profile.environment["LD_PRELOAD"].split(":")
    assert Path(first).is_file()
    assert (Path(first).name, second) == ("libiomp5.so", "/opt/libother.so")
    assert profile.environment["KMP_BLOCKTIME"] == "200us"
    assert (profile.openmp, profile.overridden_by) == ("libiomp5", ())


def test_what_the_user_says_of_openmp_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long threads spin, and the library itself: two of them in one process would not work."""
    monkeypatch.setenv("KMP_BLOCKTIME", "200")
    spinning = CpuProfile.of(ALONE)
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libgomp.so.1")
    other = CpuProfile.of(ALONE)

    assert "KMP_BLOCKTIME" not in spinning.environment
    assert spinning.overridden_by == ("KMP_BLOCKTIME",)
    assert (other.environment, other.openmp, other.overridden_by) == ({}, "libgomp", ("LD_PRELOAD",))


def test_a_look_at_the_profile_changes_nothing_here() -> None:
    """It is for processes that are not born yet."""
    before = dict(os.environ)

    CpuProfile.of(LayoutConfig(cpu_threads=3))

    assert dict(os.environ) == before


def test_the_build_is_told_without_an_import() -> None:
    """The installed one, as vLLM itself says when it is asked."""
    from vllm.platforms import current_platform

    assert is_cpu_build() == current_platform.is_cpu()
