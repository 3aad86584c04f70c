"""
How the machines of one model find each other, and how each learns that another is gone: real connections, no engine.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from faults.confined import HERE, THERE, link, require_root
from server_process import free_port

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig, NodesConfig
from appliance.core.errors import EngineDeadError, LoadError
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.multi_node import LeaderNode, WorkerNode

Node = Callable[..., EngineSpec]

FOLLOWER = """
import asyncio
from pathlib import Path
from appliance.core.errors import EngineDeadError
from appliance.config.layout import LayoutConfig, NodesConfig
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.multi_node import WorkerNode
from appliance.config.engine import EngineConfig

async def main():
    nodes = NodesConfig(count=2, rank=1, address="{here}", port={port})
    layout = LayoutConfig(tensor_parallel=2, nodes=nodes)
    worker = WorkerNode(EngineSpec("tiny", Path("/nowhere"), layout, EngineConfig()))
    addresses = (await worker.join()).addresses
    try:
        await worker.unless_lost(asyncio.get_running_loop().create_future())
    except EngineDeadError as error:
        print(f"{{addresses.own}} {{addresses.leader}}: {{error}}")

asyncio.run(main())
"""


@pytest.fixture
def node() -> Node:
    """The setup of one of the machines, by its rank."""
    port = free_port()

    def setup(rank: int, *, count: int = 2, **engine: int) -> EngineSpec:
        nodes = NodesConfig(count=count, rank=rank, address="127.0.0.1", port=port)
        layout = LayoutConfig(tensor_parallel=count, nodes=nodes)
        return EngineSpec("tiny", Path("/nowhere"), layout, EngineConfig.model_validate(engine))

    return setup


@asynccontextmanager
async def _met(node: Node) -> AsyncGenerator[tuple[LeaderNode, WorkerNode]]:
    leader, worker = LeaderNode(node(0)), WorkerNode(node(1))
    try:
        async with asyncio.timeout(20):
            await asyncio.gather(leader.wait_for_workers(), worker.join())
        yield leader, worker
    finally:
        worker.leave("the test is over")
        leader.close()


async def _until_gone(side: LeaderNode | WorkerNode, seconds: float = 10) -> str:
    async with asyncio.timeout(seconds):
        while True:
            try:
                side.check()
            except EngineDeadError as error:
                return str(error)
            await asyncio.sleep(0.01)


async def test_a_model_of_one_machine_waits_for_nobody() -> None:
    """Without nodes there is no port, and nobody to lose."""
    setup = EngineSpec("tiny", Path("/nowhere"), LayoutConfig(), EngineConfig())
    leader = LeaderNode(setup)

    assert await leader.wait_for_workers() is setup
    assert leader.states() == {}
    leader.check()
    leader.close()


async def test_each_learns_the_addresses_by_which_the_others_reach_it(node: Node) -> None:
    """Whoever comes first waits; what vLLM is told are the addresses of the connection, not a name."""
    leader, worker = LeaderNode(node(0)), WorkerNode(node(1))
    joining = asyncio.create_task(worker.join())
    await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        here, there = await asyncio.gather(leader.wait_for_workers(), joining)
    worker.leave("the test is over")
    leader.close()

    assert here.addresses is not None
    assert there.addresses is not None
    assert (here.addresses.own, here.addresses.leader) == ("127.0.0.1", "127.0.0.1")
    assert (there.addresses.own, there.addresses.leader) == ("127.0.0.1", "127.0.0.1")


async def test_nobody_begins_before_all_are_there(node: Node) -> None:
    """Of three machines two wait, whoever goes meanwhile may come again, and all begin together."""
    leader = LeaderNode(node(0, count=3))
    gathering = asyncio.create_task(leader.wait_for_workers())
    first = asyncio.create_task(WorkerNode(node(1, count=3)).join())
    async with asyncio.timeout(20):
        while leader.missing != [2]:
            await asyncio.sleep(0.01)
        first.cancel()
        while leader.missing != [1, 2]:
            await asyncio.sleep(0.01)
        was_waiting, awaited = not gathering.done(), leader.states()
        ranks = [WorkerNode(node(rank, count=3)) for rank in (1, 2)]
        await asyncio.gather(gathering, *(each.join() for each in ranks))
    for each in ranks:
        each.leave("the test is over")
    leader.close()

    assert was_waiting
    assert awaited == {1: "waiting", 2: "waiting"}
    assert leader.missing == []
    assert leader.states() == {1: "connected", 2: "connected"}


async def test_a_machine_with_another_config_is_refused(node: Node) -> None:
    """Ranks that were told different things would wait for each other for ever."""
    leader, worker = LeaderNode(node(0)), WorkerNode(node(1, max_model_len=4096))
    gathering = asyncio.create_task(leader.wait_for_workers())

    with pytest.raises(LoadError, match="serve the same file on each"):
        await asyncio.wait_for(worker.join(), 20)

    assert not gathering.done()
    gathering.cancel()
    leader.close()


async def test_a_rank_is_connected_once(node: Node) -> None:
    """A second machine of the same rank takes nobody's place: it waits until that one is free."""
    async with _met(node) as (leader, _):
        second = asyncio.create_task(WorkerNode(node(1)).join())
        await asyncio.sleep(0.2)

        assert not second.done()
        leader.check()
        second.cancel()


async def test_strangers_change_nothing(node: Node) -> None:
    """Whoever connects and says nothing that fits, or nothing at all, is no node, and its end is nobody's."""
    async with _met(node) as (leader, worker):
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b'{"rank":1,"digest":"x"}\n'):
            stranger = socket.create_connection(("127.0.0.1", node(0).layout.nodes.port))
            await asyncio.to_thread(stranger.sendall, said)
            stranger.close()
        await asyncio.sleep(0.2)

        leader.check()
        worker.check()


async def test_rank_0_hears_why_a_follower_went(node: Node) -> None:
    """The reason of the one that ended is in the reason of the one that others look at."""
    async with _met(node) as (leader, worker):
        worker.leave("process 7 ended with exit code -9")

        assert await _until_gone(leader) == "the node of rank 1 is gone: process 7 ended with exit code -9"
        assert leader.states() == {1: "disconnected"}


async def test_a_follower_notices_that_rank_0_went(node: Node) -> None:
    """It is no longer wanted then, and its load breaks off where it had not ended."""
    async with _met(node) as (leader, worker):
        loading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        leader.close()

        with pytest.raises(EngineDeadError, match=r"rank 0 at 127\.0\.0\.1 is gone"):
            await asyncio.wait_for(worker.unless_lost(loading), 10)
        assert loading.cancelled()
        assert not worker.is_connected
        assert worker.states() == {0: "disconnected"}


async def test_a_port_that_is_taken_is_named(node: Node) -> None:
    """The fault says which key to change."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", node(0).layout.nodes.port))
        holder.listen()
        with pytest.raises(LoadError, match=r"choose another layout\.nodes\.port"):
            await LeaderNode(node(0)).wait_for_workers()


@pytest.mark.faults
async def test_a_machine_without_power_is_gone_on_both_sides(node: Node) -> None:
    """No connection is closed, only nothing arrives any more: within half a minute each has noticed."""
    require_root("iptables")
    setup = node(0)
    leader = LeaderNode(setup)
    with link() as cable:
        program = [*cable.prefix, sys.executable, "-c", FOLLOWER.format(port=setup.layout.nodes.port, here=HERE)]
        process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(60):
                met = await leader.wait_for_workers()
            cable.cut(setup.layout.nodes.port)
            async with asyncio.timeout(60):
                reason = await _until_gone(leader, 60)
                said, _ = await process.communicate()
        finally:
            leader.close()
            if process.returncode is None:
                process.kill()

    assert met.addresses is not None
    assert met.addresses.own == HERE
    assert reason == "the node of rank 1 is gone"
    assert said.decode().splitlines()[-1] == f"{THERE} {HERE}: rank 0 at {HERE} is gone"
