"""One model of the config asking another, by name."""

from __future__ import annotations

from collections.abc import Callable

from appliance.core.errors import EngineDeadError, UnavailableError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.models import dispatch
from appliance.models.health import public_reason
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES, State


class PeerClient:
    """The models of a lifecycle as one of them sees the others; their answers are counted like any client's."""

    def __init__(self, find: Callable[[str], ModelStatus], front_end: FrontEnd = SINGLE_FRONT_END) -> None:
        self._find = find
        self.front_end = front_end

    def operations(self, name: str) -> frozenset[Operation]:
        """What the named model can be asked."""
        return self._find(name).model.operations

    def check(self, name: str) -> None:
        """Return when the named model answers.

        Raises:
            EngineDeadError: it never will again.
            UnavailableError: it does not answer now.
        """
        entry = self._find(name)
        text = f"its target {name!r} is {entry.state}: {public_reason(entry.state, entry.reason)}"
        if entry.state in {State.FAILED, State.STOPPED}:
            raise EngineDeadError(text)
        if not RULES[entry.state].can_answer and entry.state is not State.DRAINING:
            raise UnavailableError(text, retry_after=RULES[entry.state].retry_after)

    async def handle(self, name: str, call: ModelRequest) -> ModelResponse:
        """Have the named model answer, while the server drains too: the call this one is for came before that.

        Raises:
            CallError: it cannot do this, cannot do it now, or the call itself is at fault.
            EngineDeadError: it died over it.
        """
        return await dispatch.handle(self._find(name), call)
