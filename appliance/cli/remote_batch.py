"""A file of requests that is answered by a running server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path

import aiohttp

from appliance.batches.executor import with_retries
from appliance.batches.lines import BatchLine, LineLimits, LineResult, read_lines
from appliance.batches.objects import BatchError
from appliance.batches.offline import InputError, Progress, Results, answer_all, run_shown
from appliance.batches.validation import InputCheck
from appliance.cli.remote import RemoteError, RemoteServer, connected, refusal
from appliance.config.server import ServerLimitsConfig
from appliance.core.model import Operation

_CONCURRENT = 16

# Those of the server are not known, and it refuses what is beyond them.
_LIMITS = LineLimits(1 << 30, ServerLimitsConfig().json_depth, sys.maxsize)


class RemoteBatch:
    """Runs the requests of a file by the models of a server."""

    def __init__(self, url: str, api_key: str | None, concurrent: int | None) -> None:
        self._url, self._api_key, self._concurrent = url, api_key, concurrent or _CONCURRENT
        self.progress = Progress()

    async def run(self, path: Path, name: str, results: Results, on_progress: Callable[[Progress], None]) -> None:
        """Answer each line that has no result yet; `on_progress` is called several times a second.

        Raises:
            InputError: a line is no request; none is run.
            OutputError: a result cannot be written.
            RemoteError: the server does not answer, or refuses the key.
        """
        async with connected(self._url, self._api_key) as server:
            names = [str(model.get("id")) for model in await server.models()]

            def model_fault(model: str | None, _operation: Operation) -> BatchError | None:
                if model is None or model in names:
                    return None
                message = f"the model {model!r} does not exist at {server.url}; there are: {', '.join(names)}"
                return BatchError("model_not_found", message, "body.model")

            with path.open("rb") as file:
                self.progress.total, errors = InputCheck(model_fault).check(read_lines(file, _LIMITS))
            if errors:
                raise InputError(name, errors)
            work = answer_all(path, _LIMITS, results, self.progress, self._concurrent, partial(_answer, server))
            await run_shown(work, partial(on_progress, self.progress))


async def _answer(server: RemoteServer, line: BatchLine) -> LineResult:
    request_id = ""

    async def attempt() -> tuple[int, bytes, int | None]:
        nonlocal request_id
        headers = {"content-type": "application/json"}
        try:
            async with server.session.post(line.url.removeprefix("/"), data=line.body, headers=headers) as response:
                body, status = await response.read(), response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise server.unreachable(error) from error
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise RemoteError(f"{server.url}{line.url} {refusal(status, body.decode(errors='replace'))}")
        request_id, wait = response.headers.get("x-request-id", ""), response.headers.get("retry-after", "")
        return status, body, int(wait) if wait.isdecimal() else None

    status, body = await with_retries(attempt)
    return LineResult(line.custom_id, request_id, status, body)
