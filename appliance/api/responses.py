"""Routes of stored responses and conversations of OpenAI's Responses API.

Every route is for keys that may request responses, and has the objects of the caller's key only.
Sources: https://platform.openai.com/docs/api-reference/responses and .../conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar import Response, delete, get, post
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api import PROTOCOL
from appliance.api.disconnect import AnyRequest, before_body
from appliance.api.model_client import ModelClient
from appliance.api.openai import PREFIXES, client_response
from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import RequestError
from appliance.core.model import ModelResponse, Operation
from appliance.core.openai_types import Json
from appliance.responses import conversations
from appliance.responses.conversations import ConversationBody, Conversations
from appliance.responses.items import page, shown
from appliance.responses.service import Stored

RESPONSE, CONVERSATION = "/v1/responses/{response_id:str}", "/v1/conversations/{conversation_id:str}"
ITEM = CONVERSATION + "/items/{item_id:str}"

_OPT = {PROTOCOL: "openai"}

_PAGE_ITEMS = 20


def routes(client: ModelClient) -> list[BaseRouteHandler]:
    """Return the routes; without a store they say that nothing is stored."""
    access = _Access(client)
    return [*_of_responses(access), *_of_conversations(access), *_of_items(access)]


@dataclass(frozen=True, slots=True)
class _Access:
    """What every route uses: the store, once the caller may use it."""

    client: ModelClient

    @property
    def stored(self) -> Stored:
        self.client.manager.authorizer.require_operation(Operation.RESPONSE)
        return self.client.responses.stored

    @property
    def conversations(self) -> Conversations:
        return self.stored.conversations

    async def body(self, request: AnyRequest) -> ConversationBody:
        async with before_body(request):
            _ = self.stored
        body = await self.client.body_reader.json(request)
        return await off_loop(len(body), conversations.decode_body, body)


def _paths(path: str) -> list[str]:
    return [prefix + path for prefix in PREFIXES]


def _of_responses(access: _Access) -> list[BaseRouteHandler]:
    @get(_paths(RESPONSE), opt=_OPT)
    async def retrieve(request: AnyRequest, response_id: FromPath[str]) -> Response[Any]:
        stored = access.stored
        if request.query_params.get("stream", "false").lower() == "true":
            events = await stored.stream(response_id, _integer(request, "starting_after", -1))
            return client_response(request, ModelResponse(events, media_type=sse.MEDIA_TYPE))
        _, found = await stored.store.find(response_id)
        return _json(found.response)

    @delete(_paths(RESPONSE), status_code=200, opt=_OPT)
    async def remove(response_id: FromPath[str]) -> Json:
        await access.stored.delete(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @post(_paths(RESPONSE + "/cancel"), status_code=200, opt=_OPT)
    async def cancel(request: AnyRequest, response_id: FromPath[str]) -> Response[Any]:
        async with before_body(request):
            stored = access.stored
        return _json((await stored.cancel(response_id)).response)

    @get(_paths(RESPONSE + "/input_items"), opt=_OPT)
    async def list_input_items(request: AnyRequest, response_id: FromPath[str]) -> Json:
        _, found = await access.stored.store.find(response_id)
        return _page(request, await off_loop(len(found.input), found.input_items))

    return [retrieve, remove, cancel, list_input_items]


def _of_conversations(access: _Access) -> list[BaseRouteHandler]:
    @post(_paths("/v1/conversations"), status_code=200, opt=_OPT)
    async def create(request: AnyRequest) -> Json:
        body = await access.body(request)
        return (await access.conversations.create(body)).shown()

    @get(_paths(CONVERSATION), opt=_OPT)
    async def retrieve(conversation_id: FromPath[str]) -> Json:
        return (await access.conversations.find(conversation_id)).shown()

    @post(_paths(CONVERSATION), status_code=200, opt=_OPT)
    async def update(request: AnyRequest, conversation_id: FromPath[str]) -> Json:
        body = await access.body(request)
        if body.metadata is None:
            raise RequestError("metadata is missing; it replaces that of the conversation", param="metadata")
        return (await access.conversations.set_metadata(conversation_id, body.metadata)).shown()

    @delete(_paths(CONVERSATION), status_code=200, opt=_OPT)
    async def remove(conversation_id: FromPath[str]) -> Json:
        await access.conversations.delete(conversation_id)
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    return [create, retrieve, update, remove]


def _of_items(access: _Access) -> list[BaseRouteHandler]:
    @get(_paths(CONVERSATION + "/items"), opt=_OPT)
    async def list_items(request: AnyRequest, conversation_id: FromPath[str]) -> Json:
        return _page(request, (await access.conversations.find(conversation_id)).items)

    @post(_paths(CONVERSATION + "/items"), status_code=200, opt=_OPT)
    async def add(request: AnyRequest, conversation_id: FromPath[str]) -> Json:
        body = await access.body(request)
        if not body.items:
            raise RequestError("items is missing; it has the items to add", param="items")
        await access.conversations.add_own(conversation_id, body.items)
        return page(body.items, conversations.MAX_NEW_ITEMS, "asc", None)

    @get(_paths(ITEM), opt=_OPT)
    async def retrieve(conversation_id: FromPath[str], item_id: FromPath[str]) -> Json:
        return shown((await access.conversations.find(conversation_id)).item(item_id))

    @delete(_paths(ITEM), status_code=200, opt=_OPT)
    async def remove(conversation_id: FromPath[str], item_id: FromPath[str]) -> Json:
        return (await access.conversations.delete_item(conversation_id, item_id)).shown()

    return [list_items, add, retrieve, remove]


def _page(request: AnyRequest, items: list[Json]) -> Json:
    query = request.query_params
    return page(items, _integer(request, "limit", _PAGE_ITEMS), query.get("order", "desc"), query.get("after"))


def _integer(request: AnyRequest, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise RequestError(f"{name} is {text[:40]!r}; must be a number", param=name) from error


def _json(body: bytes) -> Response[Any]:
    return Response(bytes(body), media_type="application/json")
