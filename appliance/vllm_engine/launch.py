"""
The blocking half of an engine's start: import vLLM, build its config, start the engine core.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import ValidationError

from appliance.errors import ApplianceError, LoadError, MissingExtraError
from appliance.vllm_engine.arguments import Setup, engine_arguments, frontend_arguments
from appliance.vllm_engine.child import ForkServer
from appliance.vllm_engine.meeting import Meeting
from appliance.vllm_engine.metering import metered
from appliance.vllm_engine.placing import set_environment
from appliance.vllm_engine.stall import Step, step_logger
from appliance.vllm_engine.weights import require_weights

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.v1.engine.async_llm import AsyncLLM

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# How many more objects there must be before garbage is looked for: more than a thousand streams make at a step, which
# are gone before the next. Python's own 700 has it looked for several times in each.
_YOUNG_OBJECTS = 10_000


def prepare(setup: Setup, meeting: Meeting) -> ForkServer | None:
    """
    Set vLLM's environment, and start the process that the engine core is forked from; returns at once.

    None where vLLM starts its processes itself, on several devices, and where another front end starts them.

    Raises:
        MissingExtraError: vLLM is not installed, or Ray where it is to start the ranks.
        LoadError: the artifact is nothing that vLLM can read, or the environment asks for what front ends cannot share.
    """
    if importlib.util.find_spec("vllm") is None:
        extra = "gpu" if shutil.which("nvidia-smi") else "cpu"
        raise MissingExtraError("vllm", extra, f"the model {setup.names[0]!r}")
    if setup.layout.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", f"the executor of the model {setup.names[0]!r}")
    # Another format is read, or made up, in its own way, and only if the config asks for it.
    if "load_format" not in setup.engine.args:
        require_weights(setup.artifact, allow_pickle=setup.allow_pickle)
    if setup.engine.trust_remote_code:
        log.warning("model.runs_its_own_code", model=setup.names[0], artifact=str(setup.artifact))
    set_environment(setup.layout, setup.addresses)
    if meeting.is_shared:
        _require_nothing_of_its_own()
    is_ours = meeting.is_host and setup.layout.ranks == 1 and setup.layout.executor == "auto"
    return ForkServer() if is_ours else None


def launch(
    setup: Setup,
    server: ForkServer | None,
    meeting: Meeting,
    proceed: Callable[[], None],
    step: Step,
) -> tuple[AsyncLLM, Namespace]:
    """
    Build the engine, and the arguments for its serving classes; blocks for as long as the model loads.

    `proceed` is asked right before the engine core starts, and raises when nobody wants it any more; `step` is told of
    each step of the engine. Where front ends meet, the host starts it, and the others join once it is ready.
    What vLLM refuses, it refuses with exceptions of many kinds; `as_load_error` makes them one.
    """
    _import()
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    # An engine before this one has had its settings remembered.
    envs.disable_envs_cache()
    set_environment(setup.layout, setup.addresses)
    engine_args = AsyncEngineArgs(**engine_arguments(setup, on_cpu=current_platform.is_cpu()))
    engine_args._api_process_count, engine_args._api_process_rank = meeting.count, meeting.number
    config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    if setup.chat_template is None and setup.pooler is None:
        _require_chat_template(setup.names[0], config.model_config)
    arguments = frontend_arguments(setup, engine_args)
    arguments.structured_outputs_config = config.structured_outputs_config
    proceed()
    client = _client(meeting, proceed)
    with _forking_from(server) if server else contextlib.nullcontext(), _heard_by_all(meeting):
        llm = metered().from_vllm_config(config, stat_loggers=[step_logger(step)], **client)
    if not meeting.is_host:
        meeting.listen(llm)
    return llm, arguments


def _require_nothing_of_its_own() -> None:
    """
    Refuse what one front end would keep to itself: the next request may meet another one.
    """
    for name in ("VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        if os.environ.get(name, "0") not in ("", "0"):
            raise LoadError(f"{name} is set, and server.workers is not 1; unset it, or have one worker")


def _client(meeting: Meeting, proceed: Callable[[], None]) -> dict[str, Any]:  # Any: vLLM's argument values
    """
    What vLLM's client is told of the others; of one that joins, once there is an engine to join.
    """
    if meeting.is_host:
        return {"client_count": meeting.count}
    stats_address = meeting.join(proceed)
    requests, answers = meeting.addresses(meeting.number)
    addresses = {"input_address": requests, "output_address": answers}
    if stats_address is not None:
        addresses["stats_update_address"] = stats_address
    return {"client_addresses": addresses, "client_count": meeting.count, "client_index": meeting.number}


def _import() -> None:
    """
    Import in this thread what would otherwise be imported in the event loop, and block it for seconds.
    """
    import vllm.entrypoints.generate.api_router
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.entrypoints.pooling.factories
    import vllm.entrypoints.scale_out.factories
    import vllm.v1.engine.async_llm  # noqa: F401 - wanted for its time, not for its names


def _require_chat_template(name: str, model: ModelConfig) -> None:
    """
    Refuse a model without a chat template before its weights are read, where that can be told.
    """
    from transformers import PreTrainedTokenizerBase
    from vllm.renderers.hf import resolve_chat_template
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model)
    # Other tokenizers, Mistral's for one, carry their chat format in code.
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    if resolve_chat_template(tokenizer, None, None, model_config=model) is None:
        raise LoadError(
            f"model {name!r} has no chat template; give one as chat_template: (a file or the text), "
            "or put class: adapter in front of it"
        )


@contextlib.contextmanager
def _forking_from(server: ForkServer) -> Iterator[None]:
    """
    Have vLLM start its engine core from `server`.

    vLLM offers fork, unsafe in a process with threads, and spawn, which imports everything once more.
    """
    from vllm.v1.engine import utils

    original = utils.get_mp_context
    utils.get_mp_context = lambda: server
    try:
        yield
    finally:
        utils.get_mp_context = original


@contextlib.contextmanager
def _heard_by_all(meeting: Meeting) -> Iterator[None]:
    """
    Have vLLM tell the engine core that it starts of the other front ends too.

    vLLM offers that to a parent that starts an engine and answers nobody, which would be one process more.
    """
    if not (meeting.is_host and meeting.is_shared):
        yield
        return

    from vllm.v1.engine import core_client

    original = core_client.launch_core_engines

    def launch_core_engines(config: Any, executor: Any, log_stats: bool, addresses: Any) -> Any:  # Any: vLLM's types
        for number in range(1, meeting.count):
            requests, answers = meeting.addresses(number)
            addresses.inputs.append(requests)
            addresses.outputs.append(answers)
        return original(config, executor, log_stats, addresses)

    core_client.launch_core_engines = launch_core_engines
    try:
        yield
    finally:
        core_client.launch_core_engines = original


def settle() -> None:
    """
    Leave out of every later collection what the start brought: nearly all of it stays, and looking at it takes long.

    vLLM's settings are fixed by now, too, and it reads some of them from the environment for each token.
    """
    from vllm import envs

    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    envs.enable_envs_cache()


def as_load_error(error: Exception, setup: Setup, server: ForkServer | None) -> ApplianceError:
    """
    Any failure of a start as an error of ours, with the engine core's own words where it had some.
    """
    if isinstance(error, ApplianceError):
        return error
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    cause = (server.cause() if server else None) or f"{type(error).__name__}: {' '.join(text.split())[:500]}"
    return LoadError(f"vLLM cannot serve {setup.names[0]!r}: {cause}")
