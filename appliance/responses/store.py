"""Stored responses: what is kept of each, and who may read it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.auth import Authorizer, current_principal
from appliance.config.responses import ResponsesConfig
from appliance.core.errors import RequestError
from appliance.core.model import ModelRequest, Operation
from appliance.core.openai_types import Json
from appliance.core.stored_objects import DamagedObjectError, ObjectKey, StoredObjects, decode_stored, opening

RESPONSE, CONVERSATION = "resp_", "conv_"
"""Prefixes of the ids of both kinds of objects."""

EVENTS = "events"
"""The file with the events of a response that is streamed in the background, one on each line."""

# A response in the background has the first file until the second one is written, which is done once.
_PENDING, _FINAL = "pending.json", "final.json"

# They may hold secrets of the client.
_UNSTORED_HEADERS = frozenset({"authorization", "x-api-key", "api-key", "cookie", "proxy-authorization"})

# References are to the last turns, so an index of all items is not worth its files.
_MAX_SEARCHED = 500

_MAX_SHOWN = 80


class NotStoredError(RequestError):
    """There is no such object, or it belongs to another key, or it has expired."""

    status = 404
    code = "not_found"


def missing_response(response_id: str, param: str = "response_id", code: str | None = None) -> NotStoredError:
    """Return the error for a response that does not exist for the caller."""
    shown = response_id[:_MAX_SHOWN]
    return NotStoredError(f"Response with id {shown!r} not found; it may have expired.", param=param, code=code)


def open_objects(config: ResponsesConfig, folder: Path | None) -> StoredObjects:
    """Return the open store of a config; `folder` is the private directory of a store in memory.

    Raises:
        ApplianceError: the directory cannot be used.
    """
    directory = config.directory if folder is None else folder / "responses"
    if directory is None:
        raise AssertionError("a store in memory has no directory; this is a bug")
    is_durable = config.store == "file"
    keep_seconds, max_bytes = config.keep_hours * 3600, config.byte_limit
    objects = StoredObjects(directory, keep_seconds=keep_seconds, max_bytes=max_bytes, is_durable=is_durable)
    with opening(directory, "responses.directory"):
        objects.open()
    return objects


def current_owner() -> str:
    """Return the owner of what the current request stores: its API key, or all clients if there are no keys."""
    principal = current_principal()
    return "" if principal is None else principal.name


class StoredRequest(msgspec.Struct):
    """A request in the background, without secrets; it is sent again if the server ends before its response."""

    model: str | None
    body: msgspec.Raw
    headers: dict[str, str]
    path: str
    query: str
    is_streamed: bool
    conversation: str | None
    new_items: int
    """Number of items at the end of the input that the request added to its history."""

    @classmethod
    def of(cls, model: str | None, request: ModelRequest, conversation: str | None, new_items: int) -> StoredRequest:
        """Return what is stored of a request."""
        headers = {name: value for name, value in request.headers.items() if name not in _UNSTORED_HEADERS}
        body = msgspec.Raw(request.body)
        return cls(model, body, headers, request.path, request.query, request.is_streamed, conversation, new_items)

    def model_request(self, headers: Mapping[str, str]) -> ModelRequest:
        """Return the request for the model, with these headers or those that were stored."""
        return ModelRequest(
            Operation.RESPONSE,
            bytes(self.body),
            headers or self.headers,
            self.path,
            self.query,
            is_streamed=self.is_streamed,
            model=self.model,
        )


class StoredResponse(msgspec.Struct):
    """A response, the items that the model has read for it, and the names of the model."""

    response: msgspec.Raw
    input: msgspec.Raw
    models: list[str]
    request: StoredRequest | None = None
    """None once the response has ended, and if it did not run in the background."""

    @classmethod
    def of(
        cls, response: Json, items: Sequence[Json], models: list[str], request: StoredRequest | None = None
    ) -> StoredResponse:
        """Return what is stored."""
        encode = msgspec.json.encode
        return cls(msgspec.Raw(encode(response)), msgspec.Raw(encode(items)), models, request)

    @property
    def size(self) -> int:
        """The bytes of the response and its input."""
        return len(self.response) + len(self.input)

    def response_object(self) -> Json:
        """Return the response."""
        return msgspec.json.decode(self.response, type=Json)

    def input_items(self) -> list[Json]:
        """Return the items of the input, the oldest first."""
        return msgspec.json.decode(self.input, type=list[Json])


@dataclass(frozen=True, slots=True)
class ResponseStore:
    """The responses in a store of objects; what it does on the disk is done in threads."""

    objects: StoredObjects
    authorizer: Authorizer

    async def find(self, response_id: str) -> tuple[ObjectKey, StoredResponse]:
        """Return a response of the current caller.

        Raises:
            NotStoredError: there is none of this id, or the caller may not use its model.
        """
        stored = await self.find_or_none(response_id)
        if stored is None:
            raise missing_response(response_id)
        return ObjectKey(current_owner(), response_id), stored

    async def find_or_none(self, response_id: str) -> StoredResponse | None:
        """Return a response of the current caller; None where `find` raises."""
        stored = await asyncio.to_thread(self.read, ObjectKey(current_owner(), response_id))
        return stored if stored is not None and self.authorizer.sees(*stored.models) else None

    def read(self, key: ObjectKey) -> StoredResponse | None:
        """Return a response; None if there is none."""
        # The pending one may have ended between two reads.
        for name in (_FINAL, _PENDING, _FINAL):
            if key.id.startswith(RESPONSE) and (data := self.objects.read(key, name)) is not None:
                return decode_stored(key, data, StoredResponse)
        return None

    def find_items(self, ids: Collection[str]) -> dict[str, Json]:
        """Return items of the caller's last responses by their ids.

        Raises:
            NotStoredError: none of them has one of these.
        """
        found: dict[str, Json] = {}
        for key in self.objects.keys(RESPONSE, current_owner())[: -_MAX_SEARCHED - 1 : -1]:
            missing = {each: msgspec.json.encode(each) for each in ids if each not in found}
            data = self.objects.read(key, _FINAL) if missing else None
            if data is None or not any(mention in data for mention in missing.values()):
                continue
            # What is damaged was logged, and has no items.
            with suppress(DamagedObjectError):
                stored = decode_stored(key, data, StoredResponse)
                if self.authorizer.sees(*stored.models):
                    items: list[Json] = [*stored.response_object()["output"], *stored.input_items()]
                    found |= {each["id"]: each for each in items if each.get("id") in missing}
        if unknown := sorted(each for each in ids if each not in found):
            raise NotStoredError(f"Item with id {unknown[0][:_MAX_SHOWN]!r} not found; send it itself.", param="input")
        return found

    def read_pending(self, key: ObjectKey) -> StoredResponse | None:
        """Return a response in the background; None if it has ended."""
        if self.has_ended(key) or (data := self.objects.read(key, _PENDING)) is None:
            return None
        return decode_stored(key, data, StoredResponse)

    def has_ended(self, key: ObjectKey) -> bool:
        """Whether a response has ended, or does not exist any more."""
        path = self.objects.path(key)
        return path is None or (path / _FINAL).exists()

    def write_pending(self, key: ObjectKey, stored: StoredResponse, *, is_new: bool) -> bool:
        """Write a response that is queued or in progress; return False if it does not exist any more."""
        return self.objects.write(key, _PENDING, msgspec.json.encode(stored), must_exist=not is_new)

    def write(self, key: ObjectKey, stored: StoredResponse) -> None:
        """Write a response that has ended, and did not run in the background."""
        self.objects.write(key, _FINAL, msgspec.json.encode(stored))

    def finish(self, key: ObjectKey, stored: StoredResponse) -> bool:
        """Write a response in the background that has ended; return whether nothing else had ended it before."""
        is_first = self.objects.write_once(key, _FINAL, msgspec.json.encode(stored))
        if is_first:
            self.objects.remove(key, _PENDING)
        return is_first
