"""Requests from one model of the config to another, by name."""

from __future__ import annotations

from collections.abc import Callable

from appliance.core.errors import EngineDeadError, UnavailableError
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, ModelRequest, ModelResponse, Operation
from appliance.models import dispatch
from appliance.models.health import public_reason
from appliance.models.model_status import ModelStatus
from appliance.models.state import RULES, State


class PeerClient:
    """The models of a server as one of them sees the others; its requests are queued and counted like any client's."""

    def __init__(self, find: Callable[[str], ModelStatus], front_end: FrontEnd = SINGLE_FRONT_END) -> None:
        self._find = find
        self.front_end = front_end

    def operations(self, name: str) -> frozenset[Operation]:
        """Return the operations that the named model supports."""
        return self._find(name).model.operations

    def check(self, name: str) -> None:
        """Return if the named model answers.

        Raises:
            EngineDeadError: it has failed or stopped.
            UnavailableError: it does not answer now.
        """
        status = self._find(name)
        text = f"its target {name!r} is {status.state}: {public_reason(status.state, status.reason)}"
        if status.state in {State.FAILED, State.STOPPED}:
            raise EngineDeadError(text)
        if not RULES[status.state].can_answer and status.state is not State.DRAINING:
            raise UnavailableError(text, retry_after=RULES[status.state].retry_after)

    async def handle(self, name: str, request: ModelRequest) -> ModelResponse:
        """Have the named model answer, even while the server drains, because the client's request came before that.

        Raises:
            RequestError: the model cannot do this, cannot do it now, or the request is at fault.
            EngineDeadError: the model died during the request.
        """
        return await dispatch.handle_from_model(self._find(name), request)
