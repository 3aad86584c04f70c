"""An application whose models answer as a test says, and keep what they were asked."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import pytest
from doubles import Double, DoubleConfig, config
from inference_doubles import InferenceClient

from appliance.core.errors import RequestError
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation, Peers

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


class ScriptedModel(Double):
    """Answers each operation with the JSON of `answers`, or with `chunks` if a stream is requested."""

    operations = frozenset(Operation)

    def __init__(self) -> None:
        super().__init__(warmup_request=None)
        self.may_load.set()
        self.reset()

    def reset(self) -> None:
        """Forget the script, and what was asked."""
        self.answer_fault = None
        self.facts: Mapping[str, Any] = {}
        self.answers: dict[Operation, Any] = {}
        self.chunks: Sequence[Any] = ()
        self.bodies: list[Any] = []
        self.paths: list[str] = []

    def describe(self) -> Mapping[str, Any]:
        """What the test says."""
        return self.facts

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Answer by the script."""
        body = json.loads(call.body)
        self.bodies.append(body)
        self.paths.append(call.path)
        if self.answer_fault:
            raise self.answer_fault
        if body.get("stream"):
            return ModelResponse(self._events(), media_type="text/event-stream")
        if call.operation not in self.answers:
            raise RequestError(f"{call.operation} is not in the script")
        return ModelResponse(json.dumps(self.answers[call.operation]).encode())

    async def _events(self) -> AsyncGenerator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield f"data: {json.dumps(chunk)}\n\n".encode()
        yield b"data: [DONE]\n\n"


class ScriptedConfig(DoubleConfig):
    """Declares one."""

    def build(self, peers: Peers) -> Model:
        return ScriptedModel()


def embeddings(*vectors: Sequence[float]) -> Mapping[str, Any]:
    """The answer with these vectors, the last one first."""
    data = [{"index": index, "embedding": list(vector)} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data[::-1], "usage": USAGE}


@pytest.fixture(scope="package")
async def client() -> AsyncGenerator[InferenceClient]:
    """A client of two models, `one` (or `org/uno`) and `two`."""
    models = (ScriptedConfig(name="one", aliases=("org/uno",)), ScriptedConfig(name="two"))
    async with InferenceClient(config(*models)) as client:
        yield await client.wait_until_ready()
        await client.manager.stop()


@pytest.fixture(autouse=True)
def model(client: InferenceClient) -> ScriptedModel:
    """The model `one`, without a script."""
    scripted: ScriptedModel = client.model("one")
    scripted.reset()
    return scripted
