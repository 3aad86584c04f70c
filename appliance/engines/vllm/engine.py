"""One vLLM engine: its start, its requests, its health, its end.

The start, from top to bottom:

1. `preload`, while the model is downloaded: environment, fork server, import of vLLM.
2. `prepare`, once it is there: checks of the files, environment of this model.
3. `Engine.start`: connection of the other nodes; in a thread (`Engine._launch`) vLLM's config, the engine core and its
   client; vLLM's serving classes; announcement to other nodes and front ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import multiprocessing
import shutil
import threading
import time
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import structlog
from pydantic import ValidationError

from appliance.config.engine import ServingConfig
from appliance.config.layout import AnyLayout, LayoutConfig
from appliance.core.errors import ApplianceError, EngineDeadError, LoadError, MissingExtraError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.core.system import settle_memory
from appliance.engines.pooling_protocol import Handler, label_names
from appliance.engines.vllm import patches
from appliance.engines.vllm.async_llm import async_llm_class
from appliance.engines.vllm.deferred_imports import deferred_imports
from appliance.engines.vllm.engine_args import (
    WORKER_EXTENSION,
    EngineSpec,
    engine_arguments,
    frontend_arguments,
    require_weights,
)
from appliance.engines.vllm.env import CpuProfile, is_cpu_build, set_compile_cache, set_environment
from appliance.engines.vllm.fork_server import (
    EngineProcesses,
    ForkServer,
    SpawnContext,
    StartupTimings,
    restored_variables,
)
from appliance.engines.vllm.metrics import ENGINES
from appliance.engines.vllm.multi_frontend import FrontendRendezvous
from appliance.engines.vllm.multi_node import LeaderNode, WorkerNode
from appliance.engines.vllm.pooling import pooling_handlers
from appliance.engines.vllm.serving import generation_handlers
from appliance.engines.vllm.structured_outputs import StructuredOutputsCheck
from appliance.engines.vllm.watchdog import StallWatchdog, step_logger
from appliance.limits.queue import require_decodable

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_SPARSE_ARCHITECTURES = frozenset({"BertSpladeSparseEmbeddingModel"})


# An idle engine core exits within about a second.
_STOP_SECONDS = 5.0

_HEADLESS_POLL_SECONDS = 0.2

_IMPORT_LOCK = threading.Lock()


def preload(name: str, layout: AnyLayout, cache_dir: Path | None, *, starts_engine: bool = True) -> None:
    """Begin what needs no file of the model `name`, and return at once; call it in the main thread.

    What is compiled is kept below `cache_dir`, None is the storage's default. `starts_engine` is whether the engine
    core is a child of this process.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    _require_vllm(name)
    set_compile_cache(cache_dir)
    # A CPU is one device, so `auto` has one meaning there.
    known = layout if isinstance(layout, LayoutConfig) else LayoutConfig() if is_cpu_build() else None
    if known is not None:
        set_environment(known)
        if starts_engine:
            _create_fork_server(known, StartupTimings())

    def import_early() -> None:
        # The start imports again, and reports the error.
        with contextlib.suppress(Exception):
            import_vllm()

    threading.Thread(target=import_early, name="import-vllm", daemon=True).start()


def prepare(spec: EngineSpec, rendezvous: FrontendRendezvous, timings: StartupTimings) -> ForkServer | None:
    """Check the model's files, set vLLM's environment, and start the fork server; returns at once.

    None if vLLM starts its processes itself, for several devices, or if another front end starts the engine.

    Raises:
        MissingExtraError: vLLM is not installed, or Ray although the layout needs it.
        LoadError: vLLM cannot read the files, or the environment asks for what front ends cannot share.
    """
    _require_vllm(spec.name)
    if spec.layout.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", f"the executor of the model {spec.name!r}")
    # A configured format has files of its own, or none.
    if "load_format" not in spec.engine.args:
        require_weights(spec.artifact, allow_pickle=spec.allow_pickle)
    if spec.engine.trust_remote_code:
        log.warning("model.remote_code_trusted", model=spec.name, artifact=str(spec.artifact))
    set_environment(spec.layout, spec.addresses)
    rendezvous.require_shareable()
    return _create_fork_server(spec.layout, timings) if rendezvous.is_host else None


class Engine:
    """vLLM's ``AsyncLLM`` in this process, its engine core in another one, and its serving classes around both.

    The engine core dies with the process that started it, however that ends; with several front ends, the first one.
    """

    def __init__(self, spec: EngineSpec, front_end: FrontEnd = SINGLE_FRONT_END) -> None:
        self._spec = spec
        self._name = spec.name
        self._rendezvous = FrontendRendezvous(front_end, self._name)
        self._leader = LeaderNode(spec)
        self._processes = EngineProcesses()
        self._timings = StartupTimings()
        self._server: ForkServer | None = None
        heartbeat_file = self._rendezvous.heartbeat_file if self._rendezvous.is_shared else None
        self._watchdog = StallWatchdog(spec.engine.stall_seconds, heartbeat_file=heartbeat_file)
        self._statistics_at: dict[str, float] = {}
        self._llm: AsyncLLM | None = None
        self._handlers: Mapping[Operation, Handler] = {}
        self.measured: Mapping[str, int] = {}
        """Memory that it takes, by the names of a plan; empty before it has started."""

    async def start(self) -> None:
        """Start the engine core, or join the one that another front end starts; raises LoadError if vLLM refuses it."""
        started = time.monotonic()
        self._server = prepare(self._spec, self._rendezvous, self._timings)
        try:
            spec = await self._leader.wait_for_workers()
            llm, arguments = await self._leader.unless_lost(self._processes.start(partial(self._launch, spec)))
            with self._timings.measure("front_end"):
                # The first call to the engine core starts the task that notices its death.
                await llm.reset_mm_cache()
                self._handlers = await _create_handlers(llm, arguments, spec.engine.serving)
                self.measured = await _measure(llm)
            self._processes.record()
            _settle_memory()
            self._leader.announce("started")
            self._rendezvous.announce_ready(llm.engine_core.stats_update_address)
        except Exception as error:
            self._kill()
            log.debug("engine.start_failed", model=self._name, exc_info=True)
            failure = as_load_error(error, self._spec, self._server)
            self._rendezvous.announce_failure(str(failure))
            raise failure from error
        except BaseException:
            self._kill()
            raise
        self._llm = llm
        ENGINES.adopt(self, self._statistics_at if self._rendezvous.is_shared else None)
        log.info("engine.started", model=self._name, seconds=round(time.monotonic() - started, 2))

    def _launch(self, spec: EngineSpec) -> tuple[AsyncLLM, Namespace]:
        """Create vLLM's client and the arguments for its serving classes; blocks while the model loads."""
        server, rendezvous, raise_if_killed = self._server, self._rendezvous, self._processes.raise_if_killed
        with self._timings.measure("imports"):
            import_vllm()
        with patches.fork_from(server) if server else patches.spawn_coordinator_as_child():
            with self._timings.measure("config"):
                config, arguments = _create_config(spec, rendezvous)
            raise_if_killed()
            with self._timings.measure("engine"), patches.announce_front_ends(rendezvous):
                client_arguments = rendezvous.client_arguments(raise_if_killed)
                context = server or SpawnContext(multiprocessing.get_context("spawn"))
                structured_outputs = StructuredOutputsCheck(context, config, spec.engine.structured_outputs)
                llm = async_llm_class(structured_outputs).from_vllm_config(
                    config, stat_loggers=[step_logger(self._on_step)], **client_arguments
                )
                patches.tokenize_fairly(llm.renderer, rendezvous.count)
                patches.render_suffixes(llm.renderer)
                patches.detokenize_without_the_prompt()
                patches.receive_directly(llm)
                patches.process_directly(llm)
                patches.observe_latencies_at_once(llm)
                # Within the phase, which does not count the phases of the engine core.
                self.load_timings()
        rendezvous.monitor(llm)
        return llm, arguments

    async def handle(self, request: ModelRequest) -> ModelResponse:
        """Handle one request with vLLM's serving class for its operation; see `Model.handle`."""
        self.check()
        await require_decodable(request.body)
        return await self._handlers[request.operation](request)

    def check(self) -> None:
        """Return at once; raise EngineDeadError if the engine is dead or stalled, or was never started."""
        if self._llm is None:
            raise EngineDeadError("the engine is not running")
        self._leader.check()
        deaths = self._processes.describe_deaths()
        if deaths or self._llm.errored:
            raise EngineDeadError(f"the engine died: {deaths or 'its process does not answer'}")
        if self._rendezvous.is_disconnected:
            raise EngineDeadError(
                "the engine died: it closed its connection; see the log of the worker that started it"
            )
        self._watchdog.check(self._llm.output_processor.get_num_unfinished_requests())

    def load_timings(self) -> Mapping[str, float]:
        """Seconds that the start has taken until now, by phase."""
        if self._server is not None:
            self._server.receive()
        return self._timings.seconds

    def states(self) -> Mapping[int, str]:
        """Return the states of the model's other nodes by rank; empty if there are none."""
        return self._leader.states()

    @property
    def max_model_len(self) -> int | None:
        """Longest prompt and output together, in tokens; None before the engine has started."""
        return self._llm.model_config.max_model_len if self._llm else None

    @property
    def embedding_size(self) -> int | None:
        """Numbers in an embedding unless the request asks for fewer; None before the engine has started."""
        return self._llm.model_config.embedding_size if self._llm else None

    @property
    def is_sparse(self) -> bool:
        """Whether its embeddings have a number for each token of the vocabulary, most of them 0."""
        return self._llm is not None and self._llm.model_config.architecture in _SPARSE_ARCHITECTURES

    @property
    def max_num_seqs(self) -> int | None:
        """Most requests computed at once, by all copies together; None before the engine has started."""
        if self._llm is None:
            return None
        config = self._llm.vllm_config
        return int(config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size)

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their probabilities; empty before the engine has started."""
        return label_names(self._llm.model_config.hf_config.id2label) if self._llm else []

    async def close(self) -> None:
        """End running requests with what they have, or an error if it is dead, then the engine; safe to call twice."""
        try:
            self.check()
            is_alive = True
        except EngineDeadError:
            is_alive = False
        llm, self._llm = self._llm, None
        ENGINES.drop(self)
        if llm is not None:
            await self._close(llm, is_alive=is_alive)
        self._kill()
        self._rendezvous.leave()

    async def _close(self, llm: AsyncLLM, *, is_alive: bool) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

        # What the start created may be collected now.
        gc.unfreeze()
        if is_alive:
            await llm.abort(list(llm.output_processor.request_states), internal=True)
        else:
            # It may only be stalled. Its requests end as when vLLM notices a death.
            self._kill()
            llm.output_processor.propagate_error(VllmEngineDeadError())
        # The streams write their last chunk before the task that feeds them is cancelled.
        await asyncio.sleep(0.1)
        if is_alive:
            await self._rendezvous.wait_for_others()
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        # vLLM fails if the engine core ends while it is about to kill it.
        with contextlib.suppress(TimeoutError, psutil.NoSuchProcess):
            await asyncio.wait_for(asyncio.to_thread(llm.shutdown, _STOP_SECONDS), _STOP_SECONDS + 1)

    def _kill(self) -> None:
        """Kill every process of the engine, and disconnect the other nodes, which kill theirs."""
        self._processes.kill()
        self._leader.close()

    def _on_step(self, core: int, has_statistics: bool) -> None:
        self._watchdog.record_step()
        if has_statistics:
            self._statistics_at[str(core)] = time.monotonic()


class HeadlessEngine(WorkerNode):
    """vLLM's processes on a worker node; it serves no requests, and ends with the engine of rank 0."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._name = spec.name
        self._processes = EngineProcesses()
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
            spec = await self.join()
            self._owner = await self.unless_lost(self._processes.start(partial(self._launch, spec)))
            self._processes.record()
            while not self.has_started:
                self.check()
                await asyncio.sleep(_HEADLESS_POLL_SECONDS)
        except Exception as error:
            failure = as_load_error(error, self._spec, None)
            self._end(str(failure))
            log.debug("engine.start_failed", model=self._name, exc_info=True)
            raise failure from error
        except BaseException:
            self._end("it was stopped")
            raise
        log.info("engine.started", model=self._name, seconds=round(time.monotonic() - started, 2))

    def check(self) -> None:
        """Raise EngineDeadError if rank 0 or a rank of this node is dead."""
        super().check()
        if deaths := self._processes.describe_deaths():
            reason = f"the engine died: {deaths}"
            self.leave(reason)
            raise EngineDeadError(reason)

    async def close(self) -> None:
        """End the processes; safe to call twice."""
        self._end("it was stopped")

    def _end(self, reason: str) -> None:
        self.leave(reason)
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


def import_vllm() -> None:
    """Import what a start needs, which takes seconds."""
    # Two threads that import modules which import each other wait for one another.
    with _IMPORT_LOCK, deferred_imports():
        import vllm.entrypoints.generate.api_router
        import vllm.entrypoints.launchers.api_server.app_state
        import vllm.entrypoints.pooling.factories
        import vllm.entrypoints.scale_out.factories
        import vllm.v1.engine.async_llm  # noqa: F401 - imported for its time, not for its names


def create_engine_args(spec: EngineSpec) -> AsyncEngineArgs:
    """Return vLLM's engine arguments, after setting its environment."""
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    # The settings of an earlier engine may be cached.
    envs.disable_envs_cache()
    set_environment(spec.layout, spec.addresses)
    return AsyncEngineArgs(**engine_arguments(spec, on_cpu=current_platform.is_cpu()))


def as_load_error(error: Exception, spec: EngineSpec, server: ForkServer | None) -> ApplianceError:
    """Return any failure of a start as an error of ours, with the engine core's own message if it has sent one."""
    if isinstance(error, ApplianceError):
        return error
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    cause = (server.last_error() if server else None) or f"{type(error).__name__}: {' '.join(text.split())[:500]}"
    return LoadError(f"vLLM cannot serve {spec.name!r}: {cause}")


def _require_vllm(name: str) -> None:
    if importlib.util.find_spec("vllm") is None:
        extra = "gpu" if shutil.which("nvidia-smi") else "cpu"
        raise MissingExtraError("vllm", extra, f"the model {name!r}")


def _create_fork_server(layout: LayoutConfig, timings: StartupTimings) -> ForkServer | None:
    """Start the server that the engine core is forked from; None for several devices, where vLLM does it itself."""
    if not layout.is_single_rank:
        return None
    if not is_cpu_build():
        return ForkServer(timings)
    profile = CpuProfile.of(layout)
    return ForkServer(timings, profile.environment, profile.threads)


def _create_config(spec: EngineSpec, rendezvous: FrontendRendezvous) -> tuple[VllmConfig, Namespace]:
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    engine_args = create_engine_args(spec)
    patches.set_front_end_number(engine_args, rendezvous.count, rendezvous.number)
    # vLLM changes LD_PRELOAD for processes that it starts itself.
    with restored_variables("LD_PRELOAD") if spec.layout.is_single_rank else contextlib.nullcontext():
        config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    if spec.chat_template is None and spec.pooler is None:
        _require_chat_template(spec.name, config.model_config)
    if current_platform.is_cpu() and spec.layout.is_single_rank:
        _log_cpu_profile(spec, config)
    arguments = frontend_arguments(spec, engine_args)
    arguments.structured_outputs_config = config.structured_outputs_config
    return config, arguments


def _require_chat_template(name: str, model: ModelConfig) -> None:
    """Raise LoadError for a model without a chat template, before its weights are read."""
    from transformers import PreTrainedTokenizerBase
    from vllm.renderers.hf import resolve_chat_template
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model)
    # Other tokenizers, such as Mistral's, have their chat format in code.
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    if resolve_chat_template(tokenizer, None, None, model_config=model) is None:
        raise LoadError(
            f"model {name!r} has no chat template; give one as chat_template: (a file or the text), "
            "or put class: adapter in front of it"
        )


def _log_cpu_profile(spec: EngineSpec, config: VllmConfig) -> None:
    """Log how the engine computes on the CPU, and which keys and variables replaced our choice."""
    engine, profile = spec.engine, CpuProfile.of(spec.layout)
    keys = {
        "engine.dtype": engine.dtype != "auto",
        "engine.enforce_eager": engine.enforce_eager is not None,
        "engine.kv_cache_memory_bytes": engine.kv_cache_memory_bytes is not None,
        "layout.kv_cache": spec.layout.kv_cache is not None,
    }
    log.info(
        "cpu_profile.selected",
        model=spec.name,
        threads=profile.threads,
        openmp=profile.openmp,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        eager=config.model_config.enforce_eager,
        kv_cache_bytes=config.cache_config.kv_cache_memory_bytes,
        overridden_by=[*profile.overridden_by, *(key for key, is_set in keys.items() if is_set)],
    )


async def _create_handlers(llm: AsyncLLM, arguments: Namespace, serving: ServingConfig) -> Mapping[Operation, Handler]:
    """Return a handler for each operation, on vLLM's serving classes as it builds them for its own server."""
    from starlette.datastructures import State
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    state, tasks = State(), await llm.get_supported_tasks()
    await init_app_state(llm, state, arguments, tasks)
    patches.use_client_names(state.openai_serving_models)
    if "generate" in tasks:
        return generation_handlers(state, llm.model_config.max_model_len if serving.clamp_max_tokens else None)
    return pooling_handlers(llm, state, llm.model_config.get_pooling_task(tasks))


async def _measure(llm: AsyncLLM) -> Mapping[str, int]:
    """Return the weights' bytes on the rank with most, and the tokens of one copy's KV cache, as far as known."""
    measured: dict[str, int | None] = {"kv_tokens": llm.vllm_config.cache_config.kv_cache_size_tokens}
    # The config may have replaced our worker extension.
    if llm.vllm_config.parallel_config.worker_extension_cls == WORKER_EXTENSION:
        sizes: list[int | None] = await llm.collective_rpc("weight_bytes")
        measured["weight_bytes"] = max((size for size in sizes if size is not None), default=None)
    return {name: value for name, value in measured.items() if value is not None}


def _settle_memory() -> None:
    """Exclude what the start created from garbage collections, because nearly all of it stays; return the rest."""
    from vllm import envs

    settle_memory()
    # vLLM reads some settings from the environment for each token.
    envs.enable_envs_cache()
