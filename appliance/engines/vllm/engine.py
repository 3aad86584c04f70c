"""One vLLM engine: its start, its requests, its health, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from appliance.core.errors import EngineDeadError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, ModelRequest, ModelResponse
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.metrics import ENGINES
from appliance.engines.vllm.multi_frontend import FrontendRendezvous
from appliance.engines.vllm.multi_node import LeaderNode
from appliance.engines.vllm.pooling.classification import label_names
from appliance.engines.vllm.process_group import EngineProcesses
from appliance.engines.vllm.request_decoder import require_decodable
from appliance.engines.vllm.startup import EngineStart, RunningEngine
from appliance.engines.vllm.watchdog import SharedHeartbeat, StallWatchdog

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.v1.engine.async_llm import AsyncLLM

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# An idle engine core exits within about a second.
_STOP_SECONDS = 5.0


class Engine:
    """vLLM's ``AsyncLLM`` in this process, its engine core in another one, and its serving classes around both.

    The engine core dies with the process that started it, however that ends; with several front ends, the first one.
    """

    def __init__(self, spec: EngineSpec, front_end: FrontEnd = SINGLE_FRONT_END) -> None:
        self._name = spec.names[0]
        self._rendezvous = FrontendRendezvous(front_end, self._name)
        self._leader = LeaderNode(spec)
        self._processes = EngineProcesses()
        heartbeat = SharedHeartbeat(self._rendezvous.heartbeat_file) if self._rendezvous.is_shared else None
        self._watchdog = StallWatchdog(spec.engine.stall_seconds, heartbeat=heartbeat)
        self._startup = EngineStart(spec, self._rendezvous, self._leader, self._processes, self._on_step)
        self._statistics_at: dict[str, float] = {}
        self._running: RunningEngine | None = None

    async def start(self) -> None:
        """Start the engine core, or join the one that another front end starts, and wait until it can compute.

        Raises:
            LoadError: vLLM refuses the model or the arguments.
        """
        started = time.monotonic()
        self._running = await self._startup.run()
        ENGINES.adopt(self, self._statistics_at if self._rendezvous.is_shared else None)
        log.info("engine.started", model=self._name, seconds=round(time.monotonic() - started, 2))

    async def handle(self, request: ModelRequest) -> ModelResponse:
        """Handle one request with vLLM's serving class for its operation.

        Raises:
            RequestError: the request is at fault.
            EngineDeadError: the engine core cannot compute any more.
        """
        running = self.check()
        await require_decodable(request.body)
        return await running.handlers[request.operation](request)

    def check(self) -> RunningEngine:
        """Return the engine at once; raise EngineDeadError if it is dead or stalled, or was never started."""
        if self._running is None:
            raise EngineDeadError("the engine is not running")
        self._leader.check()
        llm, deaths = self._running.llm, self._processes.describe_deaths()
        if deaths or llm.errored:
            raise EngineDeadError(f"the engine died: {deaths or 'its process does not answer'}")
        if self._rendezvous.is_disconnected:
            raise EngineDeadError(
                "the engine died: it closed its connection; see the log of the worker that started it"
            )
        self._watchdog.check(llm.output_processor.get_num_unfinished_requests())
        return self._running

    def load_timings(self) -> Mapping[str, float]:
        """Seconds that the start has taken until now, by phase."""
        return self._startup.timings

    @property
    def nodes(self) -> Mapping[int, str]:
        """The states of the model's other nodes by rank; empty if there are none."""
        return self._leader.states()

    @property
    def max_model_len(self) -> int | None:
        """Longest prompt and output together, in tokens; None before the engine has started."""
        return self._model_config.max_model_len if self._model_config else None

    @property
    def max_num_seqs(self) -> int | None:
        """Most requests computed at once, by all copies together; None before the engine has started."""
        if self._running is None:
            return None
        config = self._running.llm.vllm_config
        return int(config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size)

    @property
    def measured(self) -> Mapping[str, int]:
        """Memory that it takes, by the names of a plan; empty before it has started."""
        return self._running.measured if self._running else {}

    @property
    def embedding_size(self) -> int | None:
        """Numbers in an embedding unless the request asks for fewer; None before the engine has started."""
        return self._model_config.embedding_size if self._model_config else None

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their probabilities; empty before the engine has started."""
        return label_names(self._model_config.hf_config.id2label) if self._model_config else []

    @property
    def _model_config(self) -> ModelConfig | None:
        return self._running.llm.model_config if self._running else None

    async def close(self) -> None:
        """End running requests with what they have, or with an error if the engine is dead; then end the engine core.

        Safe to call twice.
        """
        is_alive = self._is_alive()
        running, self._running = self._running, None
        ENGINES.drop(self)
        if running is not None:
            await self._close(running.llm, is_alive=is_alive)
        self._startup.kill()
        self._rendezvous.leave()

    async def _close(self, llm: AsyncLLM, *, is_alive: bool) -> None:
        # What the start created may be collected now.
        gc.unfreeze()
        if is_alive:
            await llm.abort(list(llm.output_processor.request_states), internal=True)
        else:
            self._fail_requests(llm)
        # The streams write their last chunk before the task that feeds them is cancelled.
        await asyncio.sleep(0.1)
        if is_alive:
            await self._rendezvous.wait_for_others()
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(llm.shutdown, _STOP_SECONDS), _STOP_SECONDS + 1)

    def _is_alive(self) -> bool:
        try:
            self.check()
        except EngineDeadError:
            return False
        return True

    def _fail_requests(self, llm: AsyncLLM) -> None:
        """Kill an engine that may only be stalled, and end its requests, as vLLM does when it notices a death."""
        from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

        self._startup.kill()
        llm.output_processor.propagate_error(VllmEngineDeadError())

    def _on_step(self, core: int, has_statistics: bool) -> None:
        self._watchdog.record_step()
        if has_statistics:
            self._statistics_at[str(core)] = time.monotonic()
