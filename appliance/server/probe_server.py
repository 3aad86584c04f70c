"""The listener of probes: in a thread and an event loop of its own, so that it answers whatever the server does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future

import uvloop

from appliance.server.listener import Listener


class ProbeListener:
    """The same as its `Listener`, which runs in a thread; that one's methods are not to be called from elsewhere."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = uvloop.new_event_loop()
        self._ended: Future[None] = Future()

    async def serve(self) -> None:
        """Answer until `stop`, and then until every connection is done.

        Raises:
            OSError: somebody else has the port.
        """
        threading.Thread(target=self._run, name="probes", daemon=True).start()
        await asyncio.wrap_future(self._ended)

    def dismiss(self) -> None:
        """Have every connection end with what is under way on it; new ones are answered."""
        self._call(self._listener.dismiss)

    def stop(self) -> None:
        """Accept nothing any more."""
        self._call(self._listener.stop)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._listener.serve())
        except BaseException as error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    def _call(self, what: Callable[[], None]) -> None:
        # It may have ended by itself.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)
