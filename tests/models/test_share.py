"""What one of several workers takes on."""

from __future__ import annotations

from doubles import Double, DoubleConfig, DoubleFactory

from appliance.config.limits import LimitsConfig
from appliance.core.model import SINGLE_FRONT_END, FrontEnd, Model, ModelRequest, ModelResponse, Operation, Peers
from appliance.models.model_status import ModelStatus


class Seven(Double):
    """Computes seven at once."""

    max_concurrent = 7


class SevenConfig(DoubleConfig):
    """Declares one."""

    def build(self, peers: Peers) -> Model:
        return Seven()


class Fellows:
    """Other processes, and no other models."""

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end

    def operations(self, _name: str) -> frozenset[Operation]:
        return frozenset()

    def check(self, _name: str) -> None:
        """There is nobody to look at."""

    async def handle(self, _name: str, call: ModelRequest) -> ModelResponse:
        return ModelResponse(call.body)


def test_workers_share_what_an_engine_computes_at_once() -> None:
    """What the config says and what the engine says alike, rounded up; one alone has all of it."""
    said = SevenConfig(name="said", limits=LimitsConfig(concurrent=5))
    taken = []
    for front_end in (SINGLE_FRONT_END, FrontEnd(1, 2)):
        for config in (SevenConfig(name="unsaid"), said):
            entry = ModelStatus.of(config, DoubleFactory(), Fellows(front_end))
            entry.bound(front_end.count)
            taken.append(entry.gate.concurrent)

    assert taken == [7, 5, 4, 3]
