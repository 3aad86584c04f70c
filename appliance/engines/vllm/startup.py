"""The blocking half of an engine's start: import vLLM, build its config, start the engine core."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import multiprocessing
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from appliance.core.errors import ApplianceError, LoadError, MissingExtraError
from appliance.engines.vllm.engine_args import EngineSpec
from appliance.engines.vllm.engine_config import configure
from appliance.engines.vllm.env import set_environment
from appliance.engines.vllm.fair_executor import FairExecutor
from appliance.engines.vllm.fork_server import ForkServer, Spawning
from appliance.engines.vllm.frontend_rendezvous import FrontendRendezvous
from appliance.engines.vllm.grammar_check import GrammarCheck
from appliance.engines.vllm.long_texts import shorten
from appliance.engines.vllm.multi_frontend import client, patch_client_addresses, reject_per_process_features
from appliance.engines.vllm.preload import fork_server, import_vllm, require_vllm
from appliance.engines.vllm.startup_timings import StartupTimings
from appliance.engines.vllm.usage_tracking import metered
from appliance.engines.vllm.watchdog import Step, step_logger
from appliance.engines.vllm.weight_files import require_weights
from appliance.limits import current_slot

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How many more objects there must be before garbage is looked for: more than a thousand streams make at a step, which
# are gone before the next. Python's own 700 has it looked for several times in each.
_YOUNG_OBJECTS = 10_000


def prepare(setup: EngineSpec, meeting: FrontendRendezvous, parts: StartupTimings) -> ForkServer | None:
    """Look at the artifact, set vLLM's environment, and begin what the engine core is forked from; returns at once.

    None where vLLM starts its processes itself, on several devices, and where another front end starts them. `parts`
    are told of what the engine core's start is spent on.

    Raises:
        MissingExtraError: vLLM is not installed, or Ray where it is to start the ranks.
        LoadError: the artifact is nothing that vLLM can read, or the environment asks for what front ends cannot share.
    """
    require_vllm(setup.names[0])
    if setup.layout.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", f"the executor of the model {setup.names[0]!r}")
    # Another format is read, or made up, in its own way, and only if the config asks for it.
    if "load_format" not in setup.engine.args:
        require_weights(setup.artifact, allow_pickle=setup.allow_pickle)
    if setup.engine.trust_remote_code:
        log.warning("model.runs_its_own_code", model=setup.names[0], artifact=str(setup.artifact))
    set_environment(setup.layout, setup.addresses)
    if meeting.is_shared:
        reject_per_process_features()
    return fork_server(setup.layout, parts) if meeting.is_host else None


def launch(
    setup: EngineSpec,
    server: ForkServer | None,
    meeting: FrontendRendezvous,
    proceed: Callable[[], None],
    step: Step,
    parts: StartupTimings,
) -> tuple[AsyncLLM, Namespace]:
    """Build the engine, and the arguments for its serving classes; blocks for as long as the model loads.

    `proceed` is asked right before the engine core starts, and raises when nobody wants it any more; `step` is told of
    each step of the engine, and `parts` of what the start is spent on. Where front ends meet, the host starts the
    engine, and the others join once it is ready.
    What vLLM refuses, it refuses with exceptions of many kinds; `as_load_error` makes them one.
    """
    with parts.part("imports"):
        import_vllm()
    with _forking_from(server) if server else _with_our_coordinator():
        with parts.part("config"):
            config, arguments = configure(setup, meeting)
        proceed()
        with parts.part("engine"), patch_client_addresses(meeting):
            others = client(meeting, proceed)
            limits = setup.engine.structured_outputs
            context = server or Spawning(multiprocessing.get_context("spawn"))
            grammars = GrammarCheck(context, config, limits.compile_seconds)
            engines = metered(limits, grammars)
            llm = engines.from_vllm_config(config, stat_loggers=[step_logger(step)], **others)
            pool = llm.renderer._executor
            pool.submit = FairExecutor(pool.submit, current_slot).submit
            shorten(llm.renderer)
            if server is not None:
                # What it tells of is no part of ours.
                server.listen()
    if not meeting.is_host:
        meeting.listen(llm)
    return llm, arguments


@contextlib.contextmanager
def _forking_from(server: ForkServer) -> Iterator[None]:
    """Have vLLM start its engine core from `server`, and look at the model's class in a process from there.

    For the first, vLLM offers fork, unsafe in a process with threads, and spawn; for the second, a new interpreter. The
    last two import everything once more.
    """
    from vllm.model_executor.models import registry
    from vllm.v1.engine import utils

    originals = utils.get_mp_context, registry._run_in_subprocess
    utils.get_mp_context, registry._run_in_subprocess = lambda: server, server.compute
    try:
        yield
    finally:
        utils.get_mp_context, registry._run_in_subprocess = originals


@contextlib.contextmanager
def _with_our_coordinator() -> Iterator[None]:
    """
    Have the process that spreads requests over copies of the model end with us; vLLM's plugins are not asked there.
    """
    from vllm.v1.engine import coordinator

    original = coordinator.get_mp_context
    coordinator.get_mp_context = lambda: Spawning(original())
    try:
        yield
    finally:
        coordinator.get_mp_context = original


def freeze_gc() -> None:
    """Leave out of every later collection what the start brought: nearly all of it stays, and looking at it takes long.

    vLLM's settings are fixed by now, too, and it reads some of them from the environment for each token.
    """
    from vllm import envs

    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    envs.enable_envs_cache()


def as_load_error(error: Exception, setup: EngineSpec, server: ForkServer | None) -> ApplianceError:
    """Any failure of a start as an error of ours, with the engine core's own words where it had some."""
    if isinstance(error, ApplianceError):
        return error
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    cause = (server.cause() if server else None) or f"{type(error).__name__}: {' '.join(text.split())[:500]}"
    return LoadError(f"vLLM cannot serve {setup.names[0]!r}: {cause}")
