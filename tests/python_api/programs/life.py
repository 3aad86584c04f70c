"""A program whose model shows its life: a load that takes a while, an end, and what the program does after it."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from appliance import ModelServer
from appliance.openai import OpenAIGenerativeModel
from appliance.openai.types import ChatCompletionChunk, ChatCompletionRequest


class Counter(OpenAIGenerativeModel):
    """Counts until somebody stops it; the file `diary` holds what happened."""

    def __init__(self, name: str, diary: Path) -> None:
        super().__init__(name)
        self.diary = diary

    def load(self) -> None:
        self.note("load began")
        while not self.diary.with_suffix(".go").exists():
            time.sleep(0.05)
        self.note("loaded")

    async def create_chat_completion(
        self, request: ChatCompletionRequest, raw_request: object = None, context: object = None
    ) -> AsyncGenerator[ChatCompletionChunk]:
        try:
            for number in range(request.max_tokens or 3):
                yield ChatCompletionChunk(choices=[{"delta": {"content": f"{number} "}}])
                await asyncio.sleep(0.01)
        finally:
            self.note("stream closed")

    def stop(self) -> None:
        self.note("stopped")

    def note(self, line: str) -> None:
        """Write it down."""
        with self.diary.open("a") as diary:
            diary.write(f"{line}\n")


if __name__ == "__main__":
    counter = Counter("counter", Path(sys.argv[3]))
    try:
        server = ModelServer(int(sys.argv[1]), host="127.0.0.1", drain_delay_seconds=0, drain_seconds=0.5)
        server.start([counter])
        counter.note("returned")
    finally:
        counter.note("left")
