"""Doubles that answer as real models do, by rules so simple that a test can say what must come out.

As a program, an appliance of them: ``python inference_doubles.py KEY=VALUE...`` with keys of `server`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Literal

from doubles import Double, DoubleConfig, DoubleFactory, config
from httpx import ASGITransport, AsyncClient

from appliance.config import Config, LoadedConfig
from appliance.config.server import ServerConfig
from appliance.core.errors import RequestError
from appliance.core.model import Model, ModelRequest, ModelResponse, Operation, Peers
from appliance.models.manager import ModelManager
from appliance.server import create_app
from appliance.tensors.codec import LENGTH_HEADER, read_request, read_response, write_request, write_response
from appliance.tensors.tensor import InferenceRequest, InferenceResponse, Tensor

Kind = Literal["writer", "talker", "embedder", "ranker", "mood", "tagger", "echo", "plain", "everything"]

OPERATIONS: Mapping[Kind, frozenset[Operation]] = {
    "writer": frozenset({Operation.COMPLETION, Operation.CHAT_COMPLETION}),
    "talker": frozenset({Operation.CHAT_COMPLETION}),
    "embedder": frozenset({Operation.EMBEDDING, Operation.RERANK, Operation.SCORE}),
    "ranker": frozenset({Operation.RERANK, Operation.SCORE, Operation.CLASSIFICATION}),
    "mood": frozenset({Operation.CLASSIFICATION}),
    "tagger": frozenset({Operation.CLASSIFICATION}),
    "echo": frozenset({Operation.INFERENCE, Operation.PREDICTION, Operation.EXPLANATION}),
    "plain": frozenset({Operation.SPEECH}),
    "everything": frozenset(Operation) - {Operation.INFERENCE, Operation.PREDICTION, Operation.EXPLANATION},
}


class OperationDouble(Double):
    """Upper-case texts, their lengths as numbers, and tensors twice as large."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(warmup_request=None)
        self.kind = kind
        self.calls: list[ModelRequest] = []
        self.writes_numbers = False
        self.may_load.set()

    @property
    def operations(self) -> frozenset[Operation]:  # type: ignore[override]  # each kind has its own
        """What its kind can be asked."""
        return OPERATIONS[self.kind]

    def describe(self) -> Mapping[str, Any]:
        """What a model of its kind says of itself."""
        if self.kind == "mood":
            return {"task": "classify", "labels": ["calm", "loud"]}
        if self.kind == "tagger":
            return {"task": "token_classify", "labels": ["O", "NAME"]}
        if self.kind == "echo":
            inputs = [{"name": "in", "datatype": "FP32", "shape": [-1, -1]}]
            return {"inputs": inputs, "outputs": [{**inputs[0], "name": "out"}]}
        return {"dimensions": 3} if self.kind == "embedder" else {}

    async def handle(self, call: ModelRequest) -> ModelResponse:
        """Answer by the rules."""
        self.calls.append(call)
        if self.answer_fault:
            raise self.answer_fault
        if b"wait" in call.body:
            await self.may_finish.wait()
        if call.operation is Operation.INFERENCE:
            return _twice(call)
        try:
            return self._answer(call, json.loads(call.body))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RequestError("this is none of its requests") from error

    def _answer(self, call: ModelRequest, body: Any) -> ModelResponse:
        if call.operation in {Operation.PREDICTION, Operation.EXPLANATION}:
            return ModelResponse(json.dumps({f"{call.operation}s": [sum(row) for row in body["instances"]]}).encode())
        if body.get("stream"):
            prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
            return ModelResponse(self._words(prompt.upper().split(), body), media_type="text/event-stream")
        return ModelResponse(json.dumps(self._made(call.operation, body)).encode())

    def _made(self, operation: Operation, body: Mapping[str, Any]) -> Any:
        match operation:
            case Operation.COMPLETION:
                prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
                texts = [prompt.upper() for prompt in prompts for _ in range(body.get("n", 1))]
                return {"choices": [{"index": number, "text": text} for number, text in enumerate(texts)][::-1]}
            case Operation.CHAT_COMPLETION:
                content = body["messages"][0]["content"].upper()
                return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
            case Operation.EMBEDDING:
                vectors = [[len(text), 0.5, -1.0] for text in body["input"]]
                data = [{"index": number, "embedding": self._vector(each)} for number, each in enumerate(vectors)]
                return {"data": data[::-1]}
            case Operation.RERANK:
                scores = [(len(text) / 100, number) for number, text in enumerate(body["documents"])]
                results = [{"index": number, "relevance_score": score} for score, number in sorted(scores)[::-1]]
                return {"results": results}
            case _:
                return {"data": [self._class(number, text) for number, text in enumerate(body["input"])]}

    def _vector(self, numbers: list[float]) -> Any:
        return numbers if self.writes_numbers else base64.b64encode(struct.pack("<3f", *numbers)).decode()

    def _class(self, number: int, text: str) -> Mapping[str, Any]:
        if self.kind == "tagger":
            words = [{"token": 1, "label": "NAME", "probability": 0.5, "start": 0, "end": len(text)}]
            return {"index": number, "tokens": words}
        probs = [0.25, 0.75] if text.isupper() else [0.75, 0.25]
        return {"index": number, "label": "loud" if text.isupper() else "calm", "probs": probs, "num_classes": 2}

    async def _words(self, words: Sequence[str], body: Mapping[str, Any]) -> AsyncGenerator[bytes]:
        for word in words:
            told = {"text": word} if "prompt" in body else {"delta": {"content": word}}
            data = json.dumps({"choices": [{"index": 0, **told}]}).encode()
            # Cut where no server would, for nobody may rely on where chunks end.
            yield b"data: " + data[:9]
            yield data[9:] + b"\n\n"
        if self.stream_fault:
            raise self.stream_fault
        yield b"data: [DONE]\n\n"


def _twice(call: ModelRequest) -> ModelResponse:
    request = read_request(call.body, call.headers.get(LENGTH_HEADER))
    outputs = []
    for tensor in request.inputs:
        values: list[Any] = [value.upper() if isinstance(value, bytes) else value * 2 for value in tensor.values()]
        if tensor.datatype == "BOOL":
            values = tensor.values()
        name = "out" if tensor.name in {"in", "input0", "input-0"} else f"{tensor.name}-out"
        outputs.append(Tensor.of_values(name, tensor.datatype, tensor.shape, values))
    body, headers = write_response(InferenceResponse("echo", None, outputs), prefers_binary=True)
    return ModelResponse(body, headers=headers)


class OperationDoubleConfig(DoubleConfig):
    """Declares one."""

    kind: Kind = "writer"
    """What it can be asked."""

    def build(self, peers: Peers) -> Model:
        return OperationDouble(self.kind)


def operation_doubles(*kinds: Kind, **others: Any) -> Config:
    """A config of one model of each kind, under the kind's name."""
    return config(*(OperationDoubleConfig(name=kind, kind=kind) for kind in kinds or OPERATIONS), **others)


class InferenceClient(AsyncClient):
    """Talks to an application of doubles in this event loop."""

    def __init__(self, config: Config) -> None:
        app = create_app(config, factory=DoubleFactory())
        self.manager: ModelManager = app.state.manager
        super().__init__(transport=ASGITransport(app, raise_app_exceptions=False), base_url="http://appliance")  # type: ignore[arg-type]  # Litestar's ASGI types are its own

    def model(self, name: str) -> Any:
        """The double of this name."""
        return self.manager.find(name).model

    async def wait_until_ready(self) -> InferenceClient:
        """Load everything."""
        self.manager.start()
        await self.wait_until(lambda: self.manager.is_ready)
        return self

    async def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0.01)

    async def ask(self, name: str, body: object, **headers: str) -> Any:
        """The status and the body of an inference."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.post(f"/v2/models/{name}/infer", content=content, headers=headers)
        return answer.status_code, answer.json()

    async def infer(self, name: str, request: InferenceRequest) -> InferenceResponse:
        """A good inference, all tensors as bytes."""
        body, headers = write_request(request)
        answer = await self.post(f"/v2/models/{name}/infer", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return read_response(answer.content, answer.headers.get(LENGTH_HEADER))


def main() -> None:
    """Serve one of each kind until SIGTERM."""
    from appliance.server.process import serve

    server = ServerConfig.model_validate(dict(word.split("=", 1) for word in sys.argv[1:]))
    sys.exit(serve(LoadedConfig(operation_doubles(server=server)), DoubleFactory()))


if __name__ == "__main__":
    main()
