"""One vLLM engine: started, watched, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import structlog

from appliance.core.errors import EngineDeadError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.fork_server import ForkServer
from appliance.engines.vllm.frontend_rendezvous import FrontendRendezvous
from appliance.engines.vllm.memory_stats import measure
from appliance.engines.vllm.metrics import ENGINES
from appliance.engines.vllm.multi_node.leader import LeaderNode
from appliance.engines.vllm.pooling import pooling
from appliance.engines.vllm.pooling.classification import labels_of
from appliance.engines.vllm.process_group import EngineProcesses
from appliance.engines.vllm.request_size import require_decodable
from appliance.engines.vllm.serving import Answer, generation
from appliance.engines.vllm.startup import as_load_error, freeze_gc, launch, prepare
from appliance.engines.vllm.startup_timings import StartupTimings
from appliance.engines.vllm.watchdog import Heartbeat, StallWatchdog

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# An idle engine core leaves by itself within about a second.
_STOP_SECONDS = 5.0


class Engine:
    """vLLM's ``AsyncLLM`` in this process, its engine core in another, and its serving classes around both.

    The engine core dies with the process that starts it, whatever ends that; of several front ends it is the first one.
    """

    def __init__(self, setup: EngineSpec, front_end: FrontEnd = SINGLE_FRONT_END) -> None:
        self._setup = setup
        self._meeting = FrontendRendezvous(front_end, setup.names[0])
        self._followers = LeaderNode(setup)
        self._family = EngineProcesses()
        self._llm: AsyncLLM | None = None
        self._answers: Mapping[Operation, Answer] = {}
        self._measured: Mapping[str, int] = {}
        pulse = Heartbeat(self._meeting.pulse) if self._meeting.is_shared else None
        self._stall = StallWatchdog(setup.engine.stall_seconds, pulse=pulse)
        self._told_at: dict[str, float] = {}
        self._server: ForkServer | None = None
        self._parts = StartupTimings()

    async def start(self) -> None:
        """Start the engine core, or join the one that another front end starts, and wait until it can compute.

        Raises:
            LoadError: vLLM refuses the model or the arguments.
        """
        started, meeting = time.monotonic(), self._meeting
        self._server = prepare(self._setup, meeting, self._parts)
        try:
            setup = await self._followers.gather()
            work = partial(launch, setup, self._server, meeting, self._family.proceed, self._step, self._parts)
            llm, arguments = await self._followers.unless_gone(self._family.start(work))
            with self._parts.part("front_end"):
                # The first word with the engine core starts the task that hears of its death.
                await llm.reset_mm_cache()
                self._answers = await _answers(llm, arguments)
                self._measured = await measure(llm)
            self._family.settle()
            self._llm = llm
            ENGINES.adopt(self, self._told_at if meeting.is_shared else None)
            freeze_gc()
            self._followers.tell_started()
            meeting.open(llm.engine_core.stats_update_address)
        except Exception as error:
            self._kill()
            log.debug("engine.failed_to_start", model=self._setup.names[0], exc_info=True)
            raised = as_load_error(error, self._setup, self._server)
            meeting.refuse(str(raised))
            raise raised from error
        except BaseException:
            self._kill()
            raise
        log.info("engine.started", model=self._setup.names[0], seconds=round(time.monotonic() - started, 2))

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Answer one call through vLLM's own serving class for its operation.

        Raises:
            CallError: the call is at fault.
            EngineDeadError: the engine core cannot answer any more.
        """
        self.check()
        await require_decodable(call.body)
        return await self._answers[call.operation](call)

    def check(self) -> None:
        """Return at once when the engine core lives and gets on with its work.

        Raises:
            EngineDeadError: it does not, or was never started.
        """
        if self._llm is None:
            raise EngineDeadError("the engine is not running")
        self._followers.check()
        deaths = self._family.deaths()
        if deaths or self._llm.errored:
            raise EngineDeadError(f"the engine died: {deaths or 'its process does not answer'}")
        if self._meeting.is_cut:
            raise EngineDeadError("the engine died: it hung up; the worker that started it knows more")
        self._stall.look(self._llm.output_processor.get_num_unfinished_requests())

    def load_timings(self) -> Mapping[str, float]:
        """What the start has been spent on until now, in seconds; see `ReportsLoadTimings`."""
        if self._server is not None:
            self._server.listen()
        return self._parts.seconds

    @property
    def operations(self) -> frozenset[Operation]:
        """What it can be asked; empty before it has started."""
        return frozenset(self._answers)

    @property
    def nodes(self) -> Mapping[int, str]:
        """How the other machines of the model are, by their ranks; empty where there are none."""
        return self._followers.standing()

    @property
    def max_model_len(self) -> int | None:
        """Longest prompt and answer together, in tokens; None before the engine has started."""
        return self._llm.model_config.max_model_len if self._llm else None

    @property
    def max_num_seqs(self) -> int | None:
        """Most requests computed at once, by all copies together; None before the engine has started."""
        if self._llm is None:
            return None
        config = self._llm.vllm_config
        return int(config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size)

    @property
    def measured(self) -> Mapping[str, int]:
        """What it came to, by the names of a plan; empty before it has started."""
        return self._measured

    @property
    def embedding_size(self) -> int | None:
        """Numbers in an embedding that nobody asked to be shorter; None before the engine has started."""
        return self._llm.model_config.embedding_size if self._llm else None

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of their probabilities; empty before the engine has started."""
        return labels_of(self._llm.model_config.hf_config.id2label) if self._llm else []

    async def close(self) -> None:
        """
        End the answers under way with what they have, or with an error where the engine is dead, then the engine core;
        safe to call twice.
        """
        is_well = self._is_well()
        llm, self._llm = self._llm, None
        ENGINES.drop(self)
        if llm is not None:
            # What it leaves behind is garbage like any other.
            gc.unfreeze()
            if is_well:
                await llm.abort(list(llm.output_processor.request_states), internal=True)
            else:
                self._break_off(llm)
            # The streams get a turn to write their last chunk before the task that feeds them goes.
            await asyncio.sleep(0.1)
            if is_well:
                await self._meeting.dissolve()
            if llm.output_handler is not None:
                llm.output_handler.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(llm.shutdown, _STOP_SECONDS), _STOP_SECONDS + 1)
        self._kill()
        self._meeting.leave()

    def _is_well(self) -> bool:
        try:
            self.check()
        except EngineDeadError:
            return False
        return True

    def _break_off(self, llm: AsyncLLM) -> None:
        """
        Kill what may only be stopped, and tell the answers under way, which vLLM does where it sees the death itself.
        """
        from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

        self._kill()
        llm.output_processor.propagate_error(VllmEngineDeadError())

    def _step(self, core: int, is_told: bool) -> None:
        self._stall.step()
        if is_told:
            self._told_at[str(core)] = time.monotonic()

    def _kill(self) -> None:
        """End every process of the engine at once, those of other machines too."""
        self._family.kill()
        self._followers.close()


async def _answers(llm: AsyncLLM, arguments: Namespace) -> Mapping[Operation, Answer]:
    """What answers each operation, on vLLM's serving classes as it builds them for its own server."""
    from starlette.datastructures import State
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    state, tasks = State(), await llm.get_supported_tasks()
    await init_app_state(llm, state, arguments, tasks)
    if "generate" in tasks:
        return generation(state)
    return pooling(llm, state, llm.model_config.get_pooling_task(tasks))
