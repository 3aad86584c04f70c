"""Requests for responses: history is put before their input, and what the model answers is stored.

It stands before the models' queue, so that limits, metrics and every model class work as for other requests.
Source: https://platform.openai.com/docs/guides/conversation-state
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from appliance.config.models import ModelConfig, ProxyConfig
from appliance.config.responses import ResponsesConfig
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import ApplianceError, RequestError
from appliance.core.memory_directory import memory_directory
from appliance.core.model import COMPACTION_PATH, ModelRequest, ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.core.stored_objects import (
    DamagedObjectError,
    ObjectKey,
    StoredObjects,
    StoreUnavailableError,
    new_object_id,
)
from appliance.models.dispatch import unavailable
from appliance.models.manager import ModelManager
from appliance.responses import compaction, event_log, events, request_fields, response_object
from appliance.responses.background import BackgroundResponses
from appliance.responses.connection_cache import ConnectionCache
from appliance.responses.conversations import Conversations
from appliance.responses.items import as_history, input_items, require_calls
from appliance.responses.request_fields import RequestFields
from appliance.responses.run import CONTINUABLE, ResponseRun, RunEnd
from appliance.responses.store import (
    EVENTS,
    RESPONSE,
    ResponseStore,
    StoredRequest,
    StoredResponse,
    current_owner,
    missing_response,
    open_objects,
)
from appliance.telemetry.recorder import RequestRecorder

# How soon the work of a process that died is taken over, and what is too old is removed.
_RECOVER_SECONDS, _SWEEP_SECONDS = 2.0, 300.0

# Clients that count on stored items send `{"type": "item_reference", "id": ID}`.
_REFERENCE = b"item_reference"
_MAX_REFERENCES = 200

# Occurs in the types of the items that `compaction` reads.
_COMPACTION = b'"compaction'

# Answers of upstreams that have no compactions, or find a request wrong; then they say so of the next one, too.
_REFUSALS = frozenset({400, 404, 405, 422})

_REMEDY = "with the key `responses` in its config it does"


class NothingStoredError(RequestError):
    """This server stores no responses."""

    status = 404
    code = "responses_not_stored"

    def __init__(self) -> None:
        super().__init__(f"This server stores no responses and conversations; {_REMEDY}.")


class Responses:
    """Answers requests for responses, and stores them if the config says so.

    `folder` is a private directory that several workers share.
    """

    def __init__(self, manager: ModelManager, recorder: RequestRecorder, folder: Path | None = None) -> None:
        self._manager, self._recorder, self._folder = manager, recorder, folder
        self._stored: Stored | None = None

    @property
    def stored(self) -> Stored:
        """The stored responses and conversations; raises NothingStoredError if nothing is stored."""
        if self._stored is None:
            raise NothingStoredError
        return self._stored

    async def handle(
        self,
        name: str | None,
        request: ModelRequest,
        cache: ConnectionCache | None = None,
        *,
        is_background: bool = False,
    ) -> ModelResponse:
        """Have the model answer, with the history before the input, and store what it answers.

        `cache` is that of the request's WebSocket; see also `ModelManager.handle`.
        """
        fields = await off_loop(len(request.body), request_fields.decode, request.body)
        self._require_store(fields)
        # Each event is read on its way.
        run, forwarded = await self._run(name, replace(request, send=None), fields, cache)
        if run.is_compaction:
            return await self._compact(name, run, forwarded, fields, cache, is_background=is_background)
        if cache is not None and fields.generate is False:
            return await self._without_output(name, run, request, cache)
        if fields.background and Operation.RESPONSE in self._manager.find(name).model.operations:
            return await self._in_background(name, run, request, forwarded)
        response = await self._manager.handle(name, forwarded, is_background=is_background)
        return await _with_response(response, partial(self._end, run, cache))

    def _require_store(self, fields: RequestFields) -> None:
        for field in ("background", "conversation") if self._stored is None else ():
            if getattr(fields, field):
                text = f"{field} needs stored responses, and this server stores none; {_REMEDY}"
                raise RequestError(text, param=field, code="responses_not_stored")

    async def _run(
        self, name: str | None, request: ModelRequest, fields: RequestFields, cache: ConnectionCache | None
    ) -> tuple[ResponseRun, ModelRequest]:
        """Return the response to be made, and the request for the model."""
        status, stored = self._manager.find(name), self._stored
        history = await self._history(fields, cache)
        has_references = stored is not None and _REFERENCE in request.body
        is_stored = None if stored is None else fields.store is not False
        run = ResponseRun(
            ObjectKey(current_owner(), new_object_id(RESPONSE)),
            [name or status.name, status.name],
            instructions=fields.instructions,
            previous_response_id=None if history is None else fields.previous_response_id,
            conversation_id=fields.conversation_id,
            is_stored=is_stored,
            is_background=bool(fields.background),
            is_compaction=request.path == COMPACTION_PATH,
        )
        is_changed = history is not None or has_references
        may_compact = run.is_compaction or _COMPACTION in request.body
        if not (is_stored or is_changed or cache is not None or may_compact):
            return run, request
        new = await off_loop(len(request.body), input_items, bytes(fields.input))
        if stored is not None and has_references:
            new = await asyncio.to_thread(stored.resolved, new, history or ())
        trigger = [{"type": compaction.TRIGGER}] if new and new[-1]["type"] == compaction.TRIGGER else []
        new = new[: len(new) - len(trigger)]
        items = [*(history or ()), *new]
        if history is not None:
            require_calls(items, new)
        run = replace(run, input=items, new_items=len(new), is_compaction=run.is_compaction or bool(trigger))
        read = await off_loop(len(request.body), compaction.readable, items, len(history or ()))
        is_changed |= len(read) != len(items) or read != items
        if stored is None and not is_changed:
            return run, request
        max_bytes = self._manager.config.server.max_body_bytes
        changed = [*read, *trigger] if is_changed else None
        work = partial(request_fields.forwarded, request, changed, max_bytes)
        size = max_bytes if is_changed else len(request.body)
        return run, await off_loop(size, partial(work, has_store=stored is not None, has_history=history is not None))

    async def _history(self, fields: RequestFields, cache: ConnectionCache | None) -> list[Json] | None:
        """Return the items before the input; None if the request continues nothing that is known here."""
        if fields.conversation_id is not None:
            return as_history((await self.stored.conversations.find(fields.conversation_id)).items)
        if (previous := fields.previous_response_id) is None:
            return None
        found = None if cache is None else cache.get(previous)
        if found is None and self._stored is not None:
            found = await self._stored.store.find_or_none(previous)
        if found is None or not self._manager.authorizer.sees(*found.models):
            if self._stored is None and (cache is None or fields.store is not False):
                # An upstream may have stored it.
                return None
            raise missing_response(previous, "previous_response_id", "previous_response_not_found")
        return await off_loop(found.size, _items_of, found)

    async def _end(self, run: ResponseRun, cache: ConnectionCache | None, kind: str, response: Json) -> Json:
        """Return the response as the client gets it; if it has ended, it is stored, or cached."""
        if kind not in events.LAST:
            return run.shown(response)
        shown = run.shown(response) if self._stored is None else await self._stored.run_end.end(run, response)
        if cache is not None and not shown["store"] and shown.get("status") in CONTINUABLE:
            cache.put(str(shown.get("id")), await asyncio.to_thread(run.stored, shown))
        return shown

    async def _compact(
        self,
        name: str | None,
        run: ResponseRun,
        request: ModelRequest,
        fields: RequestFields,
        cache: ConnectionCache | None,
        *,
        is_background: bool,
    ) -> ModelResponse:
        """Have the model summarize the input; return the compaction, or the response with it that an item requested."""
        is_response = request.path != COMPACTION_PATH
        for field in ("background",) if is_response else ("background", "stream"):
            if getattr(fields, field):
                raise RequestError(f"{field} is not available for a compaction; leave it out", param=field)
        made = await self._compacted(name, run, request, fields, is_background=is_background)
        whole = compaction.decode(await made.read()) if is_response and made.status < 300 else None
        if whole is None:
            return made
        queued = await self._queued(name, run, request)
        completed = {**queued, "status": "completed", "output": whole.output[-1:], "usage": whole.usage}
        ended = await self._end(run, cache, "response.completed", completed)
        if request.is_streamed:
            return replace(made, body=events.stream_of(ended), media_type=sse.MEDIA_TYPE)
        return replace(made, body=msgspec.json.encode(ended))

    async def _compacted(
        self, name: str | None, run: ResponseRun, request: ModelRequest, fields: RequestFields, *, is_background: bool
    ) -> ModelResponse:
        """Return the compaction of the input: that of a proxy's upstream, or one with the model's summary."""
        size, handle = len(request.body), partial(self._manager.handle, name, is_background=is_background)
        if _passes_on(self._manager.find(name).config):
            asked = request
            if request.path != COMPACTION_PATH:
                asked = await off_loop(size, compaction.route_request, request, run.input)
            if (passed_on := await _passed_on(handle(asked))) is not None:
                return passed_on
        if fields.previous_response_id is not None and run.previous_response_id is None:
            text = f"previous_response_id needs stored responses, and this server stores none; {_REMEDY}"
            raise RequestError(text, param="previous_response_id", code="responses_not_stored")
        if not run.input:
            raise RequestError("input has no items, so there is nothing to compact", param="input")

        async def change(_: str, response: Json) -> Json:
            return compaction.compacted(run.key.id, run.input, response_object.completed(response))

        summary = await off_loop(size, compaction.request_of, request, run.input)
        return await _with_response(await handle(summary), change)

    async def _queued(self, name: str | None, run: ResponseRun, request: ModelRequest) -> Json:
        """Return the response before the model has begun, if the caller may request it."""
        status = self._manager.find(name)
        self._manager.authorizer.require_operation(Operation.RESPONSE)
        if not status.rule.can_answer:
            raise unavailable(status, name or status.name)
        fields = await off_loop(len(request.body), events.decode, request.body)
        return run.shown(response_object.queued(run.key.id, run.models[0], fields or {}))

    async def _in_background(
        self, name: str | None, run: ResponseRun, request: ModelRequest, forwarded: ModelRequest
    ) -> ModelResponse:
        queued, stored = await self._queued(name, run, request), self.stored
        to_store = StoredRequest.of(name, forwarded, run.conversation_id, run.new_items)
        await stored.background.start(run, to_store, forwarded.headers, queued)
        if request.is_streamed:
            return ModelResponse(stored.follow(run.key, -1), media_type=sse.MEDIA_TYPE)
        return ModelResponse(msgspec.json.encode(queued))

    async def _without_output(
        self, name: str | None, run: ResponseRun, request: ModelRequest, cache: ConnectionCache
    ) -> ModelResponse:
        """Return a response for later requests to continue, which the model is not asked for."""
        queued = await self._queued(name, run, request)
        ended = await self._end(run, cache, "response.completed", {**queued, "status": "completed"})
        return ModelResponse(events.stream_of(ended), media_type=sse.MEDIA_TYPE)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Store responses, take over the work of processes that died, and remove what is too old, during the block."""
        config = self._manager.config.responses
        if config is None:
            yield
            return
        with nullcontext(self._folder) if self._folder else memory_folder(config) as folder:
            objects = await asyncio.to_thread(open_objects, config, folder)
            self._stored = Stored.of(self._manager, objects, self._recorder)
            task = asyncio.create_task(self._stored.maintain())
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def memory_folder(config: ResponsesConfig | None) -> AbstractContextManager[Path | None]:
    """Create the private directory of a store in memory for the block; None if the config has none."""
    if config is None or config.store == "file":
        return nullcontext()
    return memory_directory("responses", config.byte_limit)


@dataclass(slots=True)
class Stored:
    """What a server with a store does; its conversations are used by their routes directly."""

    manager: ModelManager
    store: ResponseStore
    conversations: Conversations
    background: BackgroundResponses

    @property
    def run_end(self) -> RunEnd:
        """What stores responses that have ended."""
        return self.background.run_end

    @classmethod
    def of(cls, manager: ModelManager, objects: StoredObjects, recorder: RequestRecorder) -> Stored:
        store = ResponseStore(objects, manager.authorizer)
        conversations = Conversations(objects, lambda: manager.config.server.max_body_bytes)
        background = BackgroundResponses(manager, store, RunEnd(store, conversations), recorder)
        return cls(manager, store, conversations, background)

    async def maintain(self) -> None:
        """Look after the store until cancelled."""
        left = 0.0
        while True:
            # It was logged; the next time may be better.
            try:
                if left <= 0:
                    await asyncio.to_thread(self.store.objects.sweep)
                    left = _SWEEP_SECONDS
                await self.background.recover()
                self.manager.store_usage["responses"] = await asyncio.to_thread(self.store.objects.usage)
            except StoreUnavailableError:
                # Its directory may have been removed.
                with suppress(OSError, ApplianceError):
                    await asyncio.to_thread(self.store.objects.open)
            await asyncio.sleep(_RECOVER_SECONDS)
            left -= _RECOVER_SECONDS

    def resolved(self, items: Sequence[Json], history: Sequence[Json]) -> list[Json]:
        """Return the items, with stored ones in the place of references to them."""
        known = {each.get("id") for each in history}
        new = [each for each in items if each["id"] not in known]
        references = {str(each["id"]) for each in new if each["type"] == "item_reference"}
        if len(references) > _MAX_REFERENCES:
            text = f"input refers to {len(references)} items; at most {_MAX_REFERENCES} are taken, so send the others"
            raise RequestError(text, param="input")
        found = self.store.find_items(references)
        return as_history([found.get(each["id"], each) for each in new])

    def follow(self, key: ObjectKey, after: int) -> AsyncGenerator[bytes]:
        """Return the events of a response in the background, as far as it is, and as they come."""
        return event_log.follow(self.store, key, after, lambda: self.manager.is_stopped)

    async def stream(self, response_id: str, after: int) -> AsyncGenerator[bytes]:
        """Return the events of a response in the background after the one with a number."""
        key, _ = await self.store.find(response_id)
        path = await asyncio.to_thread(self.store.objects.path, key)
        if path is None or not (path / EVENTS).exists():
            text = "A response can be streamed if it was created with background: true and stream: true; this was not"
            raise RequestError(text, param="stream")
        return self.follow(key, after)

    async def cancel(self, response_id: str) -> StoredResponse:
        """Cancel a response in the background; one that has ended stays as it is."""
        key, stored = await self.store.find(response_id)
        if not stored.response_object()["background"]:
            raise RequestError("Only a response with background: true can be cancelled.", param="response_id")
        return stored if stored.request is None else await self.background.cancel(key, stored)

    async def delete(self, response_id: str) -> None:
        """Delete a response; one in the background ends."""
        key = ObjectKey(current_owner(), response_id)
        with suppress(DamagedObjectError):
            await self.store.find(response_id)
        await asyncio.to_thread(self.store.objects.delete, key)
        self.background.stop(key)


def _items_of(stored: StoredResponse) -> list[Json]:
    """Return what a response has read and written, for the request that continues it."""
    response = stored.response_object()
    if (status := response.get("status", "completed")) not in CONTINUABLE:
        text = f"The previous response is {status}; only one that is completed or incomplete can be continued"
        raise RequestError(text, param="previous_response_id", code="response_not_completed")
    return as_history([*stored.input_items(), *response["output"]])


def _passes_on(config: ModelConfig) -> bool:
    """Whether upstreams get what this server would have the model summarize: they may know the model better."""
    if not isinstance(config, ProxyConfig) or config.fallback:
        return False
    return not any("responses" in each.translate for each in config.upstreams)


async def _passed_on(answer: Awaitable[ModelResponse]) -> ModelResponse | None:
    """Return an upstream's answer to a request for a compaction; None if the upstream makes none."""
    try:
        response = await answer
    except RequestError as error:
        if error.status not in _REFUSALS:
            raise
        return None
    is_made = response.status >= 300 or compaction.decode(await response.read()) is not None
    return None if response.status in _REFUSALS or not is_made else response


async def _with_response(response: ModelResponse, change: events.Change) -> ModelResponse:
    """Return a model's answer with its response changed, and with those in the events of a stream."""
    if isinstance(response.body, bytes):
        decoded = await off_loop(len(response.body), response_object.decode, response.body)
        if response.status >= 300 or decoded is None:
            return response
        return replace(response, body=msgspec.json.encode(await change("response.completed", decoded)))
    if not response.media_type.startswith(sse.MEDIA_TYPE):
        return response
    return replace(response, body=events.changed(response.body, change))
