"""An upstream, on the port that it is given, whose streams are as fast as they are read and never end."""

from __future__ import annotations

import asyncio
import sys

_DATA = b'{"object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":" word"}}]}'
_EVENT = b"data: " + _DATA + b"\n\n"
_PIECE = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
_LISTED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_MODELS), _MODELS)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
            writer.write(_LISTED)
            await writer.drain()
        writer.write(_HEAD)
        while head:
            writer.write(_PIECE)
            await writer.drain()
            await asyncio.sleep(0)
    except (OSError, EOFError):
        writer.close()


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
