"""Responses in the background: they run in capacity that interactive requests leave, and again if the server ended.

Source: https://platform.openai.com/docs/guides/background
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog

from appliance.auth import Principal, authenticated
from appliance.core import sse
from appliance.core.concurrency import backoff_seconds
from appliance.core.errors import EngineDeadError, GatewayError, RateLimitedError, RequestError, UnavailableError
from appliance.core.file_lock import FileLock
from appliance.core.model import ModelResponse
from appliance.core.openai_types import Json
from appliance.core.request_context import CLIENT_CLOSED_REQUEST, RequestContext, use_context
from appliance.core.stored_objects import ObjectKey, StoreUnavailableError
from appliance.models.manager import ModelManager
from appliance.models.state import State
from appliance.responses import events, response_object
from appliance.responses.event_log import EventWriter
from appliance.responses.run import ResponseRun, RunEnd
from appliance.responses.store import RESPONSE, ResponseStore, StoredRequest, StoredResponse
from appliance.telemetry.recorder import RequestRecorder

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# Responses whose requests are in memory at once; the others wait on the disk.
_MAX_LOADED = 64

# How soon another process learns that a response has begun, and this one that another has cancelled it.
_WATCH_SECONDS = 0.25

# Delays between attempts while the model is not available, and how long upstreams may be away.
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS, _MAX_AWAY_SECONDS = 0.5, 30.0, 600.0

# Answers of an upstream that is overloaded or not available, but will be.
_OVERLOADED = frozenset({429, 503})

# How soon a response is run again whose result could not be written.
_STORE_RETRY_SECONDS = 60.0

# Generations of one response, each but the last of which ended with its engine.
_ATTEMPTS = 3

_MAX_EVENT_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class BackgroundResponses:
    """Runs the background responses that this process has claimed."""

    manager: ModelManager
    store: ResponseStore
    run_end: RunEnd
    recorder: RequestRecorder
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _retry_at: dict[str, float] = field(default_factory=dict)
    _loaded: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_LOADED))

    async def start(self, run: ResponseRun, request: StoredRequest, headers: Mapping[str, str], response: Json) -> None:
        """Store a response that is queued, and run it."""
        stored = StoredResponse.of(response, run.input, run.models, request)
        claim = await asyncio.to_thread(self._create, run.key, stored)
        if request.is_streamed:
            await EventWriter(self.store, run.key).begin(response)
        self._run_in_task(run.key, claim, headers)

    def _create(self, key: ObjectKey, stored: StoredResponse) -> FileLock:
        # The claim comes first: without it, nobody would run the response after the end of this process.
        claim = self.store.objects.claim(key, is_new=True)
        if claim is None:
            raise StoreUnavailableError("The directory of the store was removed.", retry_after=30)
        try:
            self.store.write_pending(key, stored, is_new=True)
        except BaseException:
            self.store.objects.finish(key, claim)
            raise
        return claim

    async def recover(self) -> None:
        """Run the responses that no process works on any more."""
        for key in await asyncio.to_thread(self.store.objects.unfinished):
            is_due = self._retry_at.get(key.id, 0) < time.monotonic()
            if self.manager.is_stopping or not key.id.startswith(RESPONSE) or key.id in self._tasks or not is_due:
                continue
            claim = await asyncio.to_thread(self.store.objects.claim, key, is_new=False)
            if claim is not None:
                log.info("response.resumed", response=key.id)
                self._run_in_task(key, claim, {})

    async def cancel(self, key: ObjectKey, stored: StoredResponse) -> StoredResponse:
        """Cancel a response that has not ended, here or in another process; return what it is then."""
        cancelled = {**stored.response_object(), "status": "cancelled"}
        final = StoredResponse(msgspec.Raw(msgspec.json.encode(cancelled)), stored.input, stored.models)
        await asyncio.to_thread(self.store.finish, key, final)
        self.stop(key)
        return await asyncio.to_thread(self.store.read, key) or final

    def stop(self, key: ObjectKey) -> None:
        """End the work on a response that was cancelled or deleted, if it is done here."""
        if (task := self._tasks.get(key.id)) is not None:
            task.cancel()

    def _run_in_task(self, key: ObjectKey, claim: FileLock, headers: Mapping[str, str]) -> None:
        task = self.manager.in_background(self._work(key, claim, headers))
        self._tasks[key.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(key.id, None))

    async def _work(self, key: ObjectKey, claim: FileLock, headers: Mapping[str, str]) -> None:
        """Run a response to its end; if this process ends before, the claim stays for the next one."""
        try:
            async with self._loaded:
                await self._run(key, headers)
        except asyncio.CancelledError:
            if not await asyncio.to_thread(self.store.has_ended, key):
                claim.close()
                raise
        except StoreUnavailableError:
            self._retry_at[key.id] = time.monotonic() + _STORE_RETRY_SECONDS
            claim.close()
            return
        self._retry_at.pop(key.id, None)
        await asyncio.to_thread(self.store.objects.finish, key, claim)

    async def _run(self, key: ObjectKey, headers: Mapping[str, str]) -> None:
        if self.manager.is_stopping:
            # It is left to the next process, as those are that run when this one ends.
            raise asyncio.CancelledError
        stored = await asyncio.to_thread(self.store.read_pending, key)
        if stored is None or stored.request is None:
            return
        before = stored.response_object()
        run = ResponseRun(
            key,
            stored.models,
            stored.input_items(),
            stored.request.new_items,
            instructions=before["instructions"],
            previous_response_id=before["previous_response_id"],
            conversation_id=stored.request.conversation,
            is_background=True,
        )
        writer = EventWriter(self.store, key) if stored.request.is_streamed else None
        if writer is not None:
            await writer.begin(before)
        try:
            response = await self._generate(run, stored, headers, writer)
        except StoreUnavailableError:
            raise
        except Exception as error:
            response = response_object.failed(before, *_code_and_message(key, error))
        await self._end(run, response, writer)

    async def _generate(
        self, run: ResponseRun, stored: StoredResponse, headers: Mapping[str, str], writer: EventWriter | None
    ) -> Json:
        """Return the model's response; each of its events goes to the writer."""
        request = _request_of(stored)
        capture = self.recorder.capture()
        with authenticated(self._principal(run.key.owner)), use_context(run.key.id) as context:
            context.method, context.path, context.route = "POST", request.path, request.path
            context.protocol, context.key, context.response = "openai", run.key.owner or None, run.key.id
            # The key may be removed while the request is queued.
            context.on_admitted = partial(self._principal, run.key.owner)
            task = asyncio.current_task()
            watch = asyncio.create_task(self._watch(run.key, stored, context, task))
            response: Json | None = None
            try:
                response = await self._answer(run, stored, headers, context, writer)
                context.status = 200
            except asyncio.CancelledError:
                context.status = CLIENT_CLOSED_REQUEST
                raise
            except Exception as error:
                context.status, context.error = getattr(error, "status", 500), type(error).__name__
                raise
            finally:
                watch.cancel()
                context.ended = time.monotonic()
                if capture is not None:
                    capture.request.add(bytes(request.body))
                    capture.response.add(b"" if response is None else msgspec.json.encode(response))
                self.recorder.record(context, capture)
        return response

    async def _answer(
        self,
        run: ResponseRun,
        stored: StoredResponse,
        headers: Mapping[str, str],
        context: RequestContext,
        writer: EventWriter | None,
    ) -> Json:
        """Return the model's response; if its engine dies, that of the next one."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await _read(run, await self._request(_request_of(stored), headers, context), writer)
            except EngineDeadError:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(_FIRST_RETRY_SECONDS)
            if writer is not None:
                await writer.begin(stored.response_object())
        raise AssertionError("the last attempt returns or raises; this is a bug")

    def _principal(self, owner: str) -> Principal | None:
        principal = self.manager.authorizer.principal_named(owner) if owner else None
        if owner and principal is None:
            raise RequestError(f"The key {owner!r}, which requested this, does not exist any more", code="key_removed")
        return principal

    async def _watch(
        self, key: ObjectKey, stored: StoredResponse, context: RequestContext, task: asyncio.Task[None] | None
    ) -> None:
        """Show in the store when the model begins; cancel the work if someone else ends the response, or if the server
        stops before the model begins.
        """
        is_shown = False
        while not await asyncio.to_thread(self.store.has_ended, key):
            if self.manager.is_stopping and context.admitted is None:
                break
            if context.admitted is not None and not is_shown:
                is_shown = True
                response = msgspec.json.encode({**stored.response_object(), "status": "in_progress"})
                begun = StoredResponse(msgspec.Raw(response), stored.input, stored.models, stored.request)
                await asyncio.to_thread(self.store.write_pending, key, begun, is_new=False)
            await asyncio.sleep(_WATCH_SECONDS)
        if task is not None:
            task.cancel()

    async def _request(
        self, request: StoredRequest, headers: Mapping[str, str], context: RequestContext
    ) -> ModelResponse:
        """Send the request to the model, again and again while the model is not available."""
        failures, away_since = 0, None
        while True:
            try:
                response = await self.manager.handle(request.model, request.model_request(headers), is_background=True)
                if response.status not in _OVERLOADED:
                    return response
                raise UnavailableError(_message_of(await response.read()), code="upstream_failed")
            except (UnavailableError, RateLimitedError) as error:
                state = self.manager.find(request.model).state
                is_away = state is State.UNAVAILABLE or (state is State.READY and isinstance(error, UnavailableError))
                away_since = (away_since or time.monotonic()) if is_away else None
                has_given_up = away_since is not None and time.monotonic() - away_since > _MAX_AWAY_SECONDS
                if has_given_up or (state in {State.FAILED, State.STOPPED} and not self.manager.is_stopping):
                    raise
                # What has not begun is left to the next process when this one ends.
                failures, context.refused, context.admitted = failures + 1, None, None
            await asyncio.sleep(
                backoff_seconds(failures, first_seconds=_FIRST_RETRY_SECONDS, max_seconds=_MAX_RETRY_SECONDS)
            )

    async def _end(self, run: ResponseRun, response: Json, writer: EventWriter | None) -> None:
        """Store the end of a response, unless it was cancelled or deleted."""
        if await asyncio.to_thread(self.store.has_ended, run.key):
            return
        # First: a client that sees the end may continue the conversation at once.
        await self.run_end.extend_conversation(run, response)
        if writer is not None:
            async with writer.writing():
                writer.add({"type": f"response.{response['status']}", "response": response})
        await asyncio.to_thread(lambda: self.store.finish(run.key, run.stored(response)))


def _request_of(stored: StoredResponse) -> StoredRequest:
    if stored.request is None:
        raise AssertionError("a response that has ended is run; this is a bug")
    return stored.request


async def _read(run: ResponseRun, response: ModelResponse, writer: EventWriter | None) -> Json:
    """Return the whole response of a model."""
    if isinstance(response.body, bytes):
        whole = response_object.decode(response.body)
        if response.status >= 300 or whole is None:
            raise GatewayError(_message_of(response.body))
        return run.shown(whole)
    async with aclosing(sse.read_events(response.body, _MAX_EVENT_BYTES)) as stream:
        if writer is None:
            raise GatewayError("The model answered with a stream that nobody asked for")
        async with writer.writing():
            async for data in stream:
                event = events.decode(data)
                if event is None:
                    continue
                kind = str(event.get("type"))
                if kind == "error":
                    raise GatewayError(str(event.get("message") or "The model's stream ended with an error"))
                if isinstance(event.get("response"), dict):
                    event["response"] = run.shown(event["response"])
                if kind in events.LAST:
                    last: Json = event["response"]
                    return last
                # The first event was written when the response was queued.
                if kind != "response.created":
                    writer.add(event)
    raise GatewayError("The model's stream ended before the response")


def _message_of(body: bytes) -> str:
    """Return the message of an error of the model."""
    decoded = events.decode(body) or {}
    error = decoded.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "The model's answer is not a response")


def _code_and_message(key: ObjectKey, error: Exception) -> tuple[str, str]:
    """Return what a failed response says; the text of an unexpected error is for operators."""
    if isinstance(error, RequestError):
        log.info("response.failed", response=key.id, reason=str(error))
        return error.code or ("invalid_request_error" if error.status < 500 else "server_error"), str(error)
    log.error("response.failed", response=key.id, reason=type(error).__name__)
    return "server_error", f"The server failed on this response; its log says why, under the id {key.id}."
