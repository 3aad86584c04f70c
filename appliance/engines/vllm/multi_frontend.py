"""What vLLM is told where several front ends share an engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from appliance.core.errors import LoadError
from appliance.engines.vllm.frontend_rendezvous import FrontendRendezvous


def reject_per_process_features() -> None:
    """Refuse what one front end would keep to itself: the next request may meet another one.

    Raises:
        LoadError: the environment asks for it.
    """
    for name in ("VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        if os.environ.get(name, "0") not in ("", "0"):
            raise LoadError(f"{name} is set, and server.workers is not 1; unset it, or have one worker")


def client(meeting: FrontendRendezvous, proceed: Callable[[], None]) -> dict[str, Any]:  # Any: vLLM's argument values
    """What vLLM's client is told of the others; of one that joins, once there is an engine to join."""
    if meeting.is_host:
        return {"client_count": meeting.count}
    stats_address = meeting.join(proceed)
    requests, answers = meeting.addresses(meeting.number)
    addresses = {"input_address": requests, "output_address": answers}
    if stats_address is not None:
        addresses["stats_update_address"] = stats_address
    return {"client_addresses": addresses, "client_count": meeting.count, "client_index": meeting.number}


@contextlib.contextmanager
def patch_client_addresses(meeting: FrontendRendezvous) -> Iterator[None]:
    """Have vLLM tell the engine core that it starts of the other front ends too.

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
