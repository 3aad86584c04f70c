"""The ranks of one machine in an engine whose front end is on another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from appliance.core.errors import EngineDeadError
from appliance.core.model import SINGLE_FRONT_END
from appliance.engines.vllm.engine_args import EngineSpec, engine_arguments
from appliance.engines.vllm.env import set_environment
from appliance.engines.vllm.frontend_rendezvous import FrontendRendezvous
from appliance.engines.vllm.multi_node.worker import WorkerNode
from appliance.engines.vllm.preload import import_vllm
from appliance.engines.vllm.process_group import EngineProcesses
from appliance.engines.vllm.startup import as_load_error, prepare
from appliance.engines.vllm.startup_timings import StartupTimings

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_LOOK_SECONDS = 0.2


class HeadlessEngine:
    """vLLM's processes of a follower; it answers nothing, and ends with the engine of rank 0."""

    def __init__(self, setup: EngineSpec) -> None:
        self._setup = setup
        self._family = EngineProcesses()
        self._leader = WorkerNode(setup)
        # vLLM ends its processes with the object that started them.
        self._keeper: object = None

    async def start(self) -> None:
        """Wait for rank 0, start the ranks of this machine, and wait until the whole engine computes.

        Raises:
            LoadError: rank 0 refuses this machine, or vLLM the model or the arguments.
            EngineDeadError: rank 0 went, or a rank of this machine.
        """
        started = time.monotonic()
        try:
            prepare(self._setup, FrontendRendezvous(SINGLE_FRONT_END, self._setup.names[0]), StartupTimings())
            setup = await self._leader.join()
            starting = self._family.start(partial(_launch, setup, self._family.proceed))
            self._keeper = await self._leader.unless_gone(starting)
            self._family.settle()
            while not self._leader.has_started:
                self.check()
                await asyncio.sleep(_LOOK_SECONDS)
        except Exception as error:
            failure = as_load_error(error, self._setup, None)
            self._end(str(failure))
            log.debug("engine.failed_to_start", model=self._setup.names[0], exc_info=True)
            raise failure from error
        except BaseException:
            self._end("it was stopped")
            raise
        log.info("engine.started", model=self._setup.names[0], seconds=round(time.monotonic() - started, 2))

    @property
    def is_needed(self) -> bool:
        """Rank 0 is there, and has our ranks compute."""
        return self._leader.is_there

    @property
    def nodes(self) -> Mapping[int, str]:
        """How rank 0 is."""
        return self._leader.standing()

    def check(self) -> None:
        """Return at once when rank 0 and all ranks of this machine live.

        Raises:
            EngineDeadError: one of them does not.
        """
        self._leader.check()
        if deaths := self._family.deaths():
            reason = f"the engine died: {deaths}"
            self._leader.leave(reason)
            raise EngineDeadError(reason)

    async def close(self) -> None:
        """End the processes; safe to call twice."""
        self._end("it was stopped")

    def _end(self, reason: str) -> None:
        self._leader.leave(reason)
        self._family.kill()


def _launch(setup: EngineSpec, proceed: Callable[[], None]) -> object:
    """Start the ranks of this machine for a front end on another, as ``vllm serve --headless`` does; blocks until they
    have met those of rank 0, or in a model of several copies just until they run.

    What is returned ends them with its own end; `proceed` is as in `launch`.
    """
    # The groundwork may still be at it, in a thread of its own.
    import_vllm()
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.network_utils import get_tcp_uri
    from vllm.v1.engine.utils import CoreEngineProcManager
    from vllm.v1.executor import Executor
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    envs.disable_envs_cache()
    set_environment(setup.layout, setup.addresses)
    engine_args = AsyncEngineArgs(**engine_arguments(setup, on_cpu=current_platform.is_cpu()))
    config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER, headless=True)
    proceed()
    parallel = config.parallel_config
    if parallel.node_rank_within_dp > 0:
        return MultiprocExecutor(config, monitor_workers=False)
    return CoreEngineProcManager(
        local_engine_count=parallel.data_parallel_size_local,
        start_index=parallel.data_parallel_rank,
        local_start_index=0,
        vllm_config=config,
        local_client=False,
        handshake_address=get_tcp_uri(parallel.data_parallel_master_ip, parallel.data_parallel_rpc_port),
        executor_class=Executor.get_class(config),
        log_stats=True,
    )
