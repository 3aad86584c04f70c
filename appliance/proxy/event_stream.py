"""An upstream's stream on its way to the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from appliance.core import sse
from appliance.core.concurrency import off_loop
from appliance.core.errors import GatewayError
from appliance.proxy.exchange import UpstreamExchange
from appliance.proxy.model_name import RenamableEvents
from appliance.proxy.stream_usage import HiddenUsage


async def events(
    exchange: UpstreamExchange, name: str, silence_seconds: float | None, hidden: HiddenUsage | None = None
) -> AsyncGenerator[bytes]:
    """Server-sent events as they come, under the client's name for the model, without usage that is to be `hidden`.

    Between two events a comment goes out after each `silence_seconds` of silence; None sends none.

    Raises:
        GatewayError: the answer breaks off; what was begun is ended first, so that another event can follow.
    """
    renamed = RenamableEvents(name, hidden)
    chunk = exchange.first
    try:
        while chunk != b"":
            made = _comment(renamed) if chunk is None else await _fed(renamed, chunk)
            exchange.require_room(renamed.held_bytes)
            if made:
                yield made
            chunk = await exchange.more(silence_seconds)
        if rest := renamed.feed(b""):
            yield rest
    except GatewayError:
        # Half a line never went out, but whole ones of an event may have.
        if not renamed.is_between:
            yield b"\n"
        raise
    finally:
        exchange.close()


async def raw(exchange: UpstreamExchange) -> AsyncGenerator[bytes]:
    """Bytes as they come, such as speech.

    Raises:
        GatewayError: the answer breaks off, which the client sees as a connection that does.
    """
    chunk = exchange.first
    try:
        while chunk:
            yield chunk
            chunk = await exchange.more()
    finally:
        exchange.close()


async def _fed(renamed: RenamableEvents, chunk: bytes) -> bytes:
    return await off_loop(renamed.held_bytes + len(chunk), renamed.feed, chunk)


def _comment(renamed: RenamableEvents) -> bytes:
    return sse.KEEP_ALIVE if renamed.is_between else b""
