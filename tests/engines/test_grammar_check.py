"""The deadline for the compilation of grammars, with a real vocabulary and the real backends, without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.config import load
from appliance.config.engine import StructuredOutputsConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import RequestError, UnavailableError
from appliance.engines.vllm.fork_server import ForkServer, StartupTimings
from appliance.engines.vllm.structured_outputs import StructuredOutputsCheck
from appliance.models.factory import ModelFactory

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
DIES = """
import asyncio, pickle, sys

from appliance.config.engine import StructuredOutputsConfig
from appliance.engines.vllm.fork_server import ForkServer
from appliance.engines.vllm.structured_outputs import StructuredOutputsCheck
from appliance.engines.vllm.fork_server import StartupTimings
from vllm.sampling_params import StructuredOutputsParams

if __name__ == "__main__":
    server = ForkServer(StartupTimings())
    with open(sys.argv[1], "rb") as file:
        grammars = StructuredOutputsCheck(server, pickle.load(file), StructuredOutputsConfig(compile_seconds=3_600))
    asyncio.run(grammars.require_compilable(StructuredOutputsParams(choice=["a"])))
    print("compiled", flush=True)
    sys.stdin.read()
"""

TAG = {"type": "json_schema", "json_schema": SMALL}
# Minutes of one core.
HUGE = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(20_000)}}


def _constraint(**kind: Any) -> Any:
    """One of vLLM's constraints."""
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(**kind)


@pytest.fixture(scope="module")
def vllm_config(chat_file: Path) -> Any:
    """vLLM's config of the small model, as an engine of it has it."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    (model_config,) = load(chat_file).config.models
    model = ModelFactory().materialize(model_config, GlobalStorageConfig(), lambda *_: None)["model"]
    return AsyncEngineArgs(model=str(model), max_model_len=2048, enforce_eager=True).create_engine_config()


@pytest.fixture(scope="module")
def fork_server() -> ForkServer:
    """What the processes are forked from."""
    return ForkServer(StartupTimings())


@pytest.fixture
def check(fork_server: ForkServer, vllm_config: Any) -> Iterator[Callable[[float], StructuredOutputsCheck]]:
    """Makes checks with a limit in seconds, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(seconds: float) -> StructuredOutputsCheck:
            made = StructuredOutputsCheck(fork_server, vllm_config, StructuredOutputsConfig(compile_seconds=seconds))
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def shared(fork_server: ForkServer, vllm_config: Any) -> Iterator[StructuredOutputsCheck]:
    """A check with the default limit."""
    grammars = StructuredOutputsCheck(fork_server, vllm_config, StructuredOutputsConfig())
    yield grammars
    grammars.close()


@pytest.fixture
def started() -> Callable[[], set[psutil.Process]]:
    """The processes that compile, of those the test has started."""
    before = _processes()
    return lambda: _processes() - before


def _processes() -> set[psutil.Process]:
    return {child for server in psutil.Process().children() for child in server.children(recursive=True)}


def _are_gone(processes: Iterable[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(list(processes), timeout=60)
    return not alive


async def test_what_compiles_too_slowly_is_refused_and_a_small_schema_is_taken_meanwhile(
    check: Callable[[float], StructuredOutputsCheck], started: Callable[[], set[psutil.Process]]
) -> None:
    """The slow one has its limit of CPU time, then the next gets its turn; what is known is asked for only once."""
    grammars = check(1)
    slow = asyncio.create_task(grammars.require_compilable(_constraint(json=HUGE)))
    await asyncio.sleep(0)

    await grammars.require_compilable(_constraint(json=SMALL))

    with pytest.raises(RequestError, match="takes more than 1 seconds") as caught:
        await slow
    assert (caught.value.status, caught.value.code) == (400, "schema_too_complex")
    # Without a process nothing could be found out.
    grammars.close()
    await grammars.require_compilable(_constraint(json=SMALL))
    with pytest.raises(RequestError, match="takes more than 1 seconds"):
        await grammars.require_compilable(_constraint(json=HUGE))
    assert _are_gone(started())


async def test_a_slow_schema_holds_up_no_quick_one(
    check: Callable[[float], StructuredOutputsCheck], started: Callable[[], set[psutil.Process]]
) -> None:
    """What takes long waits in a line of its own, and is ended with its client."""
    grammars = check(3_600)
    slow = asyncio.create_task(grammars.require_compilable(_constraint(json=HUGE)))
    await grammars.require_compilable(_constraint(json=SMALL))

    for number in range(3):
        await grammars.require_compilable(_constraint(choice=["a", str(number)]))
    # Beside both that serve, the one that compiles.
    while len(processes := started()) < 3:
        await asyncio.sleep(0.05)
    assert not slow.done()
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    while len(processes & started()) > 2:
        await asyncio.sleep(0.05)


async def test_a_hundred_requests_with_one_new_schema_wait_for_one_compilation(
    check: Callable[[float], StructuredOutputsCheck],
) -> None:
    """All of them are refused by what the first one found out."""
    grammars = check(1)
    asked = []
    exchange = grammars._processes[0].compile

    async def counted(request: bytes) -> Any:
        asked.append(request)
        return await exchange(request)

    grammars._processes[0].compile = counted  # type: ignore[method-assign]  # to count
    works = [grammars.require_compilable(_constraint(json=SMALL)) for _ in range(100)]
    await asyncio.gather(*works)

    assert len(asked) == 1


@pytest.mark.parametrize(
    "kind",
    [
        {"json": {"$ref": "#"}},
        {"json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
        {"json": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 1_000_000}}}},
        {"json": {"type": "integer", "multipleOf": 7}},
        {"json": "no JSON"},
        {"grammar": 'root ::= root "a" | "b"'},
        {"regex": "(a*)*b"},
        {"regex": "a{1,100000}"},
        {"regex": "(?=a)b"},
        {"regex": "(" * 10_000 + "a" + ")" * 10_000},
        {
            "structural_tag": json.dumps(
                {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SMALL}}
            )
        },
    ],
)
async def test_what_looks_hostile_is_taken_where_it_compiles(
    kind: dict[str, Any], shared: StructuredOutputsCheck
) -> None:
    """So is what vLLM refuses before its engine sees it, and says why."""
    await shared.require_compilable(_constraint(**kind))


async def test_what_the_backend_of_the_engine_refuses_is_refused_in_its_words(shared: StructuredOutputsCheck) -> None:
    """vLLM would choose another backend for it, which an engine has only where that was its first request."""
    await shared.require_compilable(_constraint(json=SMALL))

    with pytest.raises(RequestError, match=r'compiled: EBNF parser error .* Rule "root" is defined multiple') as caught:
        await shared.require_compilable(_constraint(grammar='root ::= "a"\nroot ::= "b"'))

    assert (caught.value.status, caught.value.code) == (400, "schema_invalid")


async def test_a_process_that_was_killed_is_a_503_and_started_anew(
    check: Callable[[float], StructuredOutputsCheck], started: Callable[[], set[psutil.Process]]
) -> None:
    """The request that was under way fails, the next one is answered."""
    grammars = check(3_600)
    slow = asyncio.create_task(grammars.require_compilable(_constraint(json=HUGE)))
    while not (processes := started()):
        await asyncio.sleep(0.05)

    for process in processes:
        process.kill()

    with pytest.raises(UnavailableError):
        await slow
    await grammars.require_compilable(_constraint(json=SMALL))


def test_its_processes_end_with_a_parent_that_is_killed(vllm_config: Any, tmp_path: Path) -> None:
    """Nothing of the parent's runs any more."""
    script, config = tmp_path / "dies.py", tmp_path / "config.pickle"
    script.write_text(DIES)
    config.write_bytes(pickle.dumps(vllm_config))
    command = [sys.executable, str(script), str(config)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert "compiled\n" in parent.stdout
        children = psutil.Process(parent.pid).children(recursive=True)

        parent.kill()

    assert children
    assert _are_gone(children)
