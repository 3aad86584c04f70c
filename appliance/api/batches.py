"""Routes of OpenAI's batches.

Source: https://platform.openai.com/docs/api-reference/batch.
"""

from __future__ import annotations

import asyncio
import re

import msgspec
from litestar import get, post
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from appliance.api import PROTOCOL
from appliance.api.body import BodyReader
from appliance.api.disconnect import AnyRequest, before_body
from appliance.api.files import BatchAccess
from appliance.api.openai import PREFIXES
from appliance.api.pages import Page, page_of
from appliance.batches.lines import ENDPOINTS
from appliance.batches.objects import FINAL, Batch, Expiry, new_id, now
from appliance.core.errors import RequestError
from appliance.core.openai_types import require_small_metadata

_OPT = {PROTOCOL: "openai"}

_WINDOW = re.compile(r"([1-9][0-9]{0,2})([hd])")
_MAX_WINDOW_SECONDS = 30 * 24 * 3600


class BatchRequest(msgspec.Struct):
    """What a client sends to create a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: Expiry | None = None


class BatchPage(Page[Batch]):
    """A page of batches."""


def routes(access: BatchAccess, body_reader: BodyReader) -> list[BaseRouteHandler]:
    """Return the routes of batches."""

    @post([prefix + "/v1/batches" for prefix in PREFIXES], status_code=200, opt=_OPT)
    async def create_batch(request: AnyRequest) -> Batch:
        async with before_body(request):
            access.open()
        batch = _new_batch(_decode(await body_reader.json(request)))
        await access.add_batch(batch)
        return batch

    @get([prefix + "/v1/batches" for prefix in PREFIXES], opt=_OPT)
    async def list_batches(request: AnyRequest) -> BatchPage:
        store, owner = access.open()
        batches = await asyncio.to_thread(store.batches, owner)
        return BatchPage(**page_of(batches, request.query_params, max_limit=100, limit=20))

    @get([prefix + "/v1/batches/{batch_id:str}" for prefix in PREFIXES], opt=_OPT)
    async def show_batch(batch_id: FromPath[str]) -> Batch:
        return await access.batch(batch_id)

    @post([prefix + "/v1/batches/{batch_id:str}/cancel" for prefix in PREFIXES], status_code=200, opt=_OPT)
    async def cancel_batch(batch_id: FromPath[str]) -> Batch:
        batch = await access.batch(batch_id)
        if batch.status in FINAL:
            message = f"The batch {batch.id!r} is {batch.status}; only one that has not ended can be cancelled"
            raise RequestError(message, status=409)
        store, owner = access.open()
        await asyncio.to_thread(store.cancel, owner, batch.id)
        return await access.batch(batch_id)

    return [create_batch, list_batches, show_batch, cancel_batch]


def _new_batch(wanted: BatchRequest) -> Batch:
    if wanted.endpoint not in ENDPOINTS:
        names = ", ".join(ENDPOINTS)
        raise RequestError(f"endpoint is {wanted.endpoint[:200]!r}; it must be one of: {names}", param="endpoint")
    seconds = _window_seconds(wanted.completion_window)
    require_small_metadata(wanted.metadata)
    return Batch(
        id=new_id("batch_"),
        endpoint=wanted.endpoint,
        input_file_id=wanted.input_file_id,
        completion_window=wanted.completion_window,
        created_at=now(),
        expires_at=now() + seconds,
        metadata=wanted.metadata,
        output_expires_after=wanted.output_expires_after,
    )


def _decode(body: bytes) -> BatchRequest:
    try:
        return msgspec.json.decode(body, type=BatchRequest)
    except msgspec.ValidationError as error:
        raise RequestError(f"The body is not a request: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from error


def _window_seconds(window: str) -> int:
    found = _WINDOW.fullmatch(window)
    seconds = 0 if found is None else int(found[1]) * (3600 if found[2] == "h" else 24 * 3600)
    if not 0 < seconds <= _MAX_WINDOW_SECONDS:
        message = f"completion_window is {window[:20]!r}; it must be hours or days up to 30d, such as 24h or 7d"
        raise RequestError(message, param="completion_window")
    return seconds
