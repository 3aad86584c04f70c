"""One response that is being made: its place in the store, and the fields that the store sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from appliance.core.errors import RequestError
from appliance.core.openai_types import Json
from appliance.core.stored_objects import ObjectKey
from appliance.responses import response_object
from appliance.responses.conversations import Conversations
from appliance.responses.store import ResponseStore, StoredResponse

log: structlog.stdlib.BoundLogger = structlog.get_logger()


CONTINUABLE = frozenset({"completed", "incomplete"})
"""States of responses that requests can continue."""


@dataclass(frozen=True, slots=True)
class ResponseRun:
    """A response with its history; `input` has the history and the new items at its end."""

    key: ObjectKey
    models: list[str]
    input: Sequence[Json] = ()
    new_items: int = 0
    instructions: Any = None  # Any: as the client sent them, without what the config adds
    previous_response_id: str | None = None
    conversation_id: str | None = None
    is_stored: bool | None = True
    """None if there is no store, so that an upstream may store it."""
    is_background: bool = False
    is_compaction: bool = False
    """Whether this server has the model summarize the input."""

    def shown(self, response: Json) -> Json:
        """Return the model's response as clients get it."""
        own: Json = {}
        if self.is_stored is not None:
            own = {"store": self.is_stored, "background": self.is_background}
        if self.is_stored:
            own["id"] = self.key.id
        if self.previous_response_id is not None:
            own["previous_response_id"] = self.previous_response_id
        if self.conversation_id is not None:
            own["conversation"] = {"id": self.conversation_id}
        return {**response_object.completed({**response, **own}), "instructions": self.instructions}

    def stored(self, response: Json) -> StoredResponse:
        """Return what is stored of a response that has ended."""
        return StoredResponse.of(response, self.input, self.models)


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Stores responses that have ended, and adds their items to their conversations."""

    store: ResponseStore
    conversations: Conversations

    async def end(self, run: ResponseRun, response: Json) -> Json:
        """Store the response of a client that waits; return it as the client gets it.

        An answer is worth more than its copy: if it cannot be stored, it says so in `store`.
        """
        shown = run.shown(response)
        await self.extend_conversation(run, shown)
        if run.is_stored and not await self._attempt(run, lambda: self.store.write(run.key, run.stored(shown))):
            shown["store"] = False
        return shown

    async def extend_conversation(self, run: ResponseRun, response: Json) -> None:
        """Add the new items of a response to its conversation."""
        if run.conversation_id is None or response.get("status") not in CONTINUABLE:
            return
        new = [*run.input[len(run.input) - run.new_items :], *(response.get("output") or ())]
        try:
            await self.conversations.add_turn(ObjectKey(run.key.owner, run.conversation_id), run.key.id, new)
        except RequestError as error:
            # It was deleted meanwhile, or is full.
            response["conversation"] = None
            log.warning("response.not_stored", response=run.key.id, reason=str(error))

    async def _attempt(self, run: ResponseRun, work: Callable[[], None]) -> bool:
        try:
            await asyncio.to_thread(work)
        except RequestError as error:
            log.warning("response.not_stored", response=run.key.id, reason=str(error))
            return False
        return True
