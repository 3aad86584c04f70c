"""Where the front ends of one engine meet, without an engine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import wait_until

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.core.errors import LoadError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd
from appliance.engines.vllm.engine import prepare
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.fork_server import StartupTimings
from appliance.engines.vllm.multi_frontend import FrontendRendezvous

MODEL = "publishers/shop/" + "long" * 60

JOINS = """
import sys, time
from pathlib import Path
from appliance.core.model import FrontEnd
from appliance.engines.vllm.multi_frontend import FrontendRendezvous
rendezvous = FrontendRendezvous(FrontEnd(1, 2, Path(sys.argv[1])), sys.argv[2])
rendezvous.join(lambda: None)
print("joined", flush=True)
time.sleep(600)
"""


@pytest.fixture
def enter(tmp_path: Path) -> Callable[[int], FrontendRendezvous]:
    """The rendezvous as the front end of this number sees it, of two."""
    return lambda number: FrontendRendezvous(FrontEnd(number, 2, tmp_path), MODEL)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has joined, once the engine is there."""
    process = subprocess.Popen([sys.executable, "-c", JOINS, str(tmp_path), MODEL], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_each_waits_until_the_engine_is_there(enter: Callable[[int], FrontendRendezvous]) -> None:
    """And hears then where its copies tell how busy they are."""
    host, other = enter(0), enter(1)
    heard: list[str | None] = []
    joining = threading.Thread(target=lambda: heard.append(other.join(lambda: None)))
    joining.start()
    joining.join(0.2)
    is_waiting = joining.is_alive()
    host.announce_ready("ipc://stats")
    joining.join(10)
    other.leave()

    assert is_waiting
    assert heard == ["ipc://stats"]


def test_where_there_is_no_engine_each_says_why(enter: Callable[[int], FrontendRendezvous]) -> None:
    """The host's reason is that of all."""
    enter(0).announce_failure("vLLM cannot serve 'a': it has no weights")

    with pytest.raises(LoadError, match="it has no weights"):
        enter(1).join(lambda: None)


def test_a_wait_that_nobody_wants_ends(enter: Callable[[int], FrontendRendezvous]) -> None:
    """A server that stops while it loads does not wait for an engine."""

    def proceed() -> None:
        raise LoadError("the load was stopped")

    with pytest.raises(LoadError, match="the load was stopped"):
        enter(1).join(proceed)


def test_the_host_stays_until_the_others_have_left(enter: Callable[[int], FrontendRendezvous]) -> None:
    """Their streams need the engine, which ends with it."""

    async def part(host: FrontendRendezvous, other: FrontendRendezvous) -> bool:
        leaving = asyncio.create_task(host.wait_for_others())
        done, _ = await asyncio.wait([leaving], timeout=0.3)
        other.leave()
        await asyncio.wait_for(leaving, 10)
        return not done

    host, other = enter(0), enter(1)
    host.announce_ready(None)
    other.join(lambda: None)

    assert asyncio.run(part(host, other))


def test_who_was_killed_has_left(enter: Callable[[int], FrontendRendezvous], joined: subprocess.Popen[str]) -> None:
    """The kernel says so for it."""
    host = enter(0)
    host.announce_ready(None)
    assert joined.stdout is not None
    said = joined.stdout.readline()
    is_there = host._has_members()
    joined.kill()

    assert (said, is_there) == ("joined\n", True)
    wait_until(lambda: not host._has_members(), 10)


def test_what_one_of_them_would_keep_to_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request of a conversation may meet another one."""
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    setup = EngineSpec("a", tmp_path, LayoutConfig(), EngineConfig())
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")

    with pytest.raises(LoadError, match=r"VLLM_ENABLE_RESPONSES_API_STORE is set, .* have one worker"):
        prepare(setup, FrontendRendezvous(FrontEnd(1, 2, tmp_path), "a"), StartupTimings())


def test_models_meet_apart_and_each_address_fits_a_socket(tmp_path: Path) -> None:
    """However long a model's name is, and whatever is in it."""
    front_ends = [FrontEnd(number, 2, Path("/tmp/appliance-abcdefgh")) for number in range(2)]
    rendezvous = [FrontendRendezvous(each, name) for each in front_ends for name in (MODEL, "a", "A")]

    addresses = {address for each in rendezvous for address in each.addresses(each.number)}

    assert len(addresses) == 12
    assert all(len(address.removeprefix("ipc://")) < 108 for address in addresses)


def test_who_is_alone_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hosts nobody and waits for nobody, wherever it runs."""
    monkeypatch.chdir(tmp_path)
    alone = FrontendRendezvous(SINGLE_FRONT_END, MODEL)

    alone.announce_ready(None)
    alone.announce_failure("it broke")
    asyncio.run(asyncio.wait_for(alone.wait_for_others(), 10))
    alone.leave()

    assert alone.is_host
    assert not alone.is_shared
    assert not list(tmp_path.iterdir())
