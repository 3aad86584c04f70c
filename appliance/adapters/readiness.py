"""Whether a target answers: shown by one real answer, and again after a silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from appliance.adapters.renderer import RenderError
from appliance.adapters.sandbox import TemplateFaultError
from appliance.core.errors import ApplianceError, EngineDeadError, GatewayError, UnavailableError

# So many requests in a row without any answer are no accident.
_SILENCES = 3

# How often a model of the same file is looked at, and a server elsewhere is asked, at first and at last.
_LOOK_SECONDS = 0.5
_ASK_SECONDS = (1.0, 30.0)

# A first answer may wait for a target that wakes up.
_PATIENCE_SECONDS = 300.0


class Readiness:
    """`check` says what is known, at once; a task of its own finds it out."""

    def __init__(
        self, prove: Callable[[], Awaitable[object]], look: Callable[[], None], silences: Callable[[], int]
    ) -> None:
        """`prove` asks for one real answer, `look` raises what is known of the target without asking it, and `silences`
        counts the requests in a row that got no answer.
        """
        self._prove = prove
        self._look = look
        self._silences = silences
        self._reason: str | None = "the first answer is being made"
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start to find out."""
        self._task = asyncio.create_task(self._watch())

    def check(self) -> None:
        """Return where the target answers.

        Raises:
            EngineDeadError: it never will again.
            UnavailableError: it does not now.
        """
        self._look()
        if self._reason is not None:
            raise UnavailableError(self._reason)

    async def close(self) -> None:
        """Find out no more; safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            wait = _ASK_SECONDS[0]
            while self._reason is not None:
                await asyncio.sleep(await self._ask(wait))
                wait = min(wait * 2, _ASK_SECONDS[1])
            await asyncio.sleep(_LOOK_SECONDS)
            if self._silences() >= _SILENCES:
                self._reason = "its target does not answer"

    async def _ask(self, wait: float) -> float:
        """Ask once, and say how long to wait before the next time."""
        try:
            self._look()
        except (UnavailableError, EngineDeadError):
            return _LOOK_SECONDS
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._prove()
        except TimeoutError:
            self._reason = f"its target gave no answer within {_PATIENCE_SECONDS:.0f} seconds"
            return wait
        except GatewayError as error:
            self._reason = f"its target does not answer the first request, because {error.detail}"
            return wait
        except ApplianceError as error:
            # A template that fails does so before the target is asked.
            is_ours = isinstance(error.__cause__, RenderError | TemplateFaultError)
            how = "the first request cannot be made" if is_ours else "its target refused the first request"
            self._reason = f"{how}, because {error}"
            return wait
        self._reason = None
        return 0.0
