"""The ranks of a worker node, for an engine whose front end runs on rank 0."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial

import structlog

from appliance.core.errors import EngineDeadError
from appliance.core.model import SINGLE_FRONT_END
from appliance.engines.vllm.engine import as_load_error, create_engine_args, import_vllm, prepare
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.fork_server import EngineProcesses, StartupTimings
from appliance.engines.vllm.multi_frontend import FrontendRendezvous
from appliance.engines.vllm.multi_node import WorkerNode

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_POLL_SECONDS = 0.2


class HeadlessEngine:
    """vLLM's processes on a worker node; it serves no requests, and ends with the engine of rank 0."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._name = spec.names[0]
        self._processes = EngineProcesses()
        self._node = WorkerNode(spec)
        # vLLM ends its processes when the object that started them is collected.
        self._owner: object = None

    async def start(self) -> None:
        """Wait for rank 0, start the ranks of this node, and wait until the whole engine computes.

        Raises:
            LoadError: rank 0 refuses this node, or vLLM refuses the model or the arguments.
            EngineDeadError: rank 0 ended, or a rank of this node.
        """
        started = time.monotonic()
        try:
            prepare(self._spec, FrontendRendezvous(SINGLE_FRONT_END, self._name), StartupTimings())
            spec = await self._node.join()
            self._owner = await self._node.unless_lost(self._processes.start(partial(self._launch, spec)))
            self._processes.record()
            while not self._node.has_started:
                self.check()
                await asyncio.sleep(_POLL_SECONDS)
        except Exception as error:
            failure = as_load_error(error, self._spec, None)
            self._end(str(failure))
            log.debug("engine.start_failed", model=self._name, exc_info=True)
            raise failure from error
        except BaseException:
            self._end("it was stopped")
            raise
        log.info("engine.started", model=self._name, seconds=round(time.monotonic() - started, 2))

    @property
    def is_connected(self) -> bool:
        """Whether rank 0 is there, and uses this node."""
        return self._node.is_connected

    @property
    def nodes(self) -> Mapping[int, str]:
        """The state of rank 0."""
        return self._node.states()

    def check(self) -> None:
        """Raise EngineDeadError if rank 0 or a rank of this node is dead."""
        self._node.check()
        if deaths := self._processes.describe_deaths():
            reason = f"the engine died: {deaths}"
            self._node.leave(reason)
            raise EngineDeadError(reason)

    async def close(self) -> None:
        """End the processes; safe to call twice."""
        self._end("it was stopped")

    def _end(self, reason: str) -> None:
        self._node.leave(reason)
        self._processes.kill()

    def _launch(self, spec: EngineSpec) -> object:
        """Start the ranks as ``vllm serve --headless`` does, and return the object that owns them.

        Blocks until they are connected to those of rank 0, or with several copies of the model just until they run.
        """
        # The import of `preload` may still be running in its thread.
        import_vllm()
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.network_utils import get_tcp_uri
        from vllm.v1.engine.utils import CoreEngineProcManager
        from vllm.v1.executor import Executor
        from vllm.v1.executor.multiproc_executor import MultiprocExecutor

        config = create_engine_args(spec).create_engine_config(UsageContext.OPENAI_API_SERVER, headless=True)
        self._processes.raise_if_killed()
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
