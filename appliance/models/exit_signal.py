"""Whether the process is to end with a model that failed."""

from __future__ import annotations

import asyncio


class ExitSignal:
    """The first fault that the process is to end with; what follows may follow from it."""

    def __init__(self) -> None:
        self._code = 0
        self._has_come = asyncio.Event()

    def begin(self, code: int) -> None:
        """Have the process end with this exit code, unless it ends with another already."""
        if not self._has_come.is_set():
            self._code = code
            self._has_come.set()

    async def wait(self) -> int:
        """Wait for it; the exit code."""
        await self._has_come.wait()
        return self._code
