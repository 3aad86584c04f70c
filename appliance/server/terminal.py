"""What a person at a terminal sees of a server: downloads, the first request to send, and what a shutdown waits for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from appliance.config import Config
from appliance.config.server import ServerConfig
from appliance.core.model import Operation
from appliance.core.status_line import status_line
from appliance.models.fetch import CONVERSION, FetchProgress
from appliance.models.manager import ModelManager
from appliance.models.model_status import ModelStatus
from appliance.models.state import State

_INTERVAL_SECONDS = 0.25
_BAR_WIDTH = 20

# The first operation that a model has is the one to try; other paths need a body that depends on the model.
_REQUESTS: Mapping[Operation, tuple[str, Mapping[str, object]]] = {
    Operation.CHAT_COMPLETION: (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50},
    ),
    Operation.COMPLETION: ("/v1/completions", {"prompt": "Hello", "max_tokens": 50}),
    Operation.EMBEDDING: ("/v1/embeddings", {"input": "Hello"}),
    Operation.RERANK: ("/v1/rerank", {"query": "Hello", "documents": ["Hi", "Bye"]}),
    Operation.CLASSIFICATION: ("/v1/classify", {"input": "Hello"}),
}


async def watch(manager: ModelManager) -> None:
    """Show the server on the terminal that its log is written to, until cancelled."""
    is_greeted, stopping_since = False, None
    failed: set[str] = set()
    try:
        while True:
            # A reload of the config makes another one.
            line = status_line()
            if line is None:
                return
            if manager.is_ready and not is_greeted:
                is_greeted = True
                line.print(greeting(manager.config, manager.statuses))
            for status in manager.statuses:
                if status.state is State.FAILED and status.name not in failed and not manager.is_stopping:
                    failed.add(status.name)
                    line.print(f"\nFailed: {status.name}: {status.reason}\nCtrl-C stops the server.\n")
            if manager.is_stopping:
                stopping_since = stopping_since or time.monotonic()
                line.show(stopping(manager, time.monotonic() - stopping_since))
            else:
                line.show(" | ".join(map(starting, filter(_is_starting, manager.statuses))))
            await asyncio.sleep(_INTERVAL_SECONDS)
    finally:
        if (line := status_line()) is not None:
            line.show("")


def base_url(server: ServerConfig) -> str:
    """The address of the server for a client on this machine."""
    host = "localhost" if server.host in ("0.0.0.0", "::") else server.host  # noqa: S104 - compared, not bound
    scheme = "http" if server.tls is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}"


def greeting(config: Config, statuses: tuple[ModelStatus, ...]) -> str:
    """Where the server is, what it serves, and the first request to send."""
    url, names = base_url(config.server), ", ".join(status.name for status in statuses)
    lines = ["", f"Ready: {url} serves {names}. Ctrl-C stops it."]
    if config.server.page:
        lines.append(f"The page of the server is {url}/, and the documentation of its routes {url}/docs.")
    request = next(filter(None, (_request(status) for status in statuses)), None)
    if request is not None:
        path, body = request
        options = ["-H 'Content-Type: application/json'"]
        if config.server.api_keys:
            options.append('-H "Authorization: Bearer $API_KEY"')
        if config.server.tls is not None and config.server.tls.client_ca is not None:
            options.append("--cert CLIENT.pem")
        text = json.dumps(body).replace("'", "'\\''")
        lines += ["Try it:", f"  curl {url}{path} {' '.join(options)} \\", f"    -d '{text}'"]
    return "\n".join([*lines, ""])


def _request(status: ModelStatus) -> tuple[str, Mapping[str, object]] | None:
    offered = status.model.operations
    found = next((request for operation, request in _REQUESTS.items() if operation in offered), None)
    return None if found is None else (found[0], {"model": status.name, **found[1]})


def stopping(manager: ModelManager, elapsed_seconds: float) -> str:
    """What the shutdown waits for, and how to end it."""
    requests = sum(status.running + status.queued for status in manager.statuses)
    if not requests:
        return "stopping"
    left = max(0, manager.config.server.drain_seconds - elapsed_seconds)
    count = f"{requests} request{'s' if requests > 1 else ''}"
    return f"stopping: waiting for {count}, {left:.0f} s at most; Ctrl-C again ends at once"


def _is_starting(status: ModelStatus) -> bool:
    return status.state in (State.FETCHING, State.LOADING, State.PROVING)


def starting(status: ModelStatus) -> str:
    """What a model that is not ready yet is doing."""
    if status.state is State.FETCHING and status.progress is not None and status.progress.part:
        return f"{status.name} {download(status.progress)}"
    seconds = (datetime.now(UTC) - status.since).total_seconds()
    return f"{status.name} is {status.state}: {status.reason}, {seconds:.0f} s"


def download(progress: FetchProgress) -> str:
    """A bar, the bytes, the rate and the remaining time of a download."""
    from rich.filesize import decimal

    if progress.part == CONVERSION:
        return f"is being converted from GGUF, {progress.part_seconds:.0f} s"
    shown = progress.describe()
    if shown["retry_in_seconds"]:
        return f"waits for the store, which is asked again in {shown['retry_in_seconds']:.0f} s"
    fetched, total, eta = shown["fetched_bytes"], shown["total_bytes"], shown["eta_seconds"]
    if not total:
        return f"{decimal(fetched)}, {decimal(shown['bytes_per_second'])}/s"
    filled = min(_BAR_WIDTH, _BAR_WIDTH * fetched // total)
    bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
    rest = "" if eta is None else f", {int(eta) // 60}:{int(eta) % 60:02} left"
    return f"{bar} {decimal(fetched)} of {decimal(total)}, {decimal(shown['bytes_per_second'])}/s{rest}"
