"""KServe's class of models, without a server of its own."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.core.errors import LoadError
from appliance.core.model import ModelRequest, Operation
from appliance.kserve import Model, ModelRepository
from appliance.kserve.protocol.rest.openai import OpenAIGenerativeModel
from appliance.kserve.protocol.rest.openai.types import Completion, CompletionChoice
from appliance.python_api.model_adapter import PythonModelAdapter
from appliance.python_api.user_code import UserCodeError


class Engine(Model):
    """Writes down its steps."""

    def __init__(self, *, engine: bool = True, loads: bool = True) -> None:
        super().__init__("engine")
        self.engine, self.loads, self.steps = engine, loads, list[str]()

    def load(self) -> bool:
        self.steps.append("load")
        return self.loads

    def start(self) -> None:
        self.steps.append("start")

    async def start_engine(self) -> None:
        self.steps.append("start_engine")

    def stop(self) -> None:
        self.steps.append("stop")

    def stop_engine(self) -> None:
        self.steps.append("stop_engine")

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return payload


async def test_steps_of_a_models_life_are_called_in_order() -> None:
    """Those of the engine if there is one."""
    with_engine, without = Engine(), Engine(engine=False)
    for model in (with_engine, without):
        adapter = PythonModelAdapter(model)
        await adapter.load({})
        await adapter.check()
        await adapter.close()

    assert with_engine.steps == ["load", "start", "start_engine", "stop", "stop_engine"]
    assert without.steps == ["load", "start", "stop"]


async def test_an_engine_makes_a_model_ready_whose_load_returned_false() -> None:
    """As KServe's models on vLLM do."""
    model = Engine(loads=False)
    await PythonModelAdapter(model).load({})

    assert model.ready
    with pytest.raises(LoadError, match=r"Engine\.load\(\) returned False"):
        await PythonModelAdapter(Engine(engine=False, loads=False)).load({})


async def test_an_engine_that_fails_is_named() -> None:
    """With its own error."""

    class Broken(Engine):
        async def start_engine(self) -> None:
            raise ValueError("no device")

    with pytest.raises(LoadError, match=r"Broken\.start_engine raised ValueError: no device"):
        await PythonModelAdapter(Broken()).load({})


async def test_steps_can_be_awaited_by_those_that_override_them() -> None:
    """All of them are asynchronous in KServe."""

    class Careful(Model):
        async def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return await super().preprocess(payload, headers)

        async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return await super().postprocess(result, headers, response_headers)

        async def healthy(self) -> bool:
            return bool(await super().healthy())

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return payload

    model = Careful("careful")
    adapter = PythonModelAdapter(model)
    await adapter.load({})

    assert await model.preprocess({"instances": [1]}) == {"instances": [1]}
    assert await model.postprocess([1]) == [1]
    assert await model.healthy()
    await adapter.close()


async def test_no_request_is_sent_before_a_model_is_ready() -> None:
    """Unless the class sets a proof: it may refuse what its declarations allow."""

    class Writer(OpenAIGenerativeModel):
        async def create_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            return Completion(choices=[CompletionChoice(text=request.prompt)])

        async def create_chat_completion(self, request: Any, raw_request: Any = None, context: Any = None) -> Any:
            raise NotImplementedError

    class Image(Model):
        def get_input_types(self) -> Any:
            return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    class Proven(Writer):
        proof = {"prompt": "a"}  # noqa: RUF012 - as a user writes it

    requests = [PythonModelAdapter(each).warmup_request for each in (Writer("a"), Image("b"), Proven("c"))]
    assert requests[:2] == [None, None]
    assert requests[2] is not None
    assert requests[2].operation is Operation.COMPLETION


async def test_plain_steps_of_one_request_run_together() -> None:
    """They may keep in the object what the next one needs."""

    class Stateful(Model):
        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            self.text = payload["instances"][0]

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            time.sleep(0.002)

        def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return {"predictions": [self.text]}

    adapter = PythonModelAdapter(Stateful("stateful"))
    await adapter.load({})
    texts = [str(number) for number in range(20)]
    bodies = [json.dumps({"instances": [text]}).encode() for text in texts]
    answers = await asyncio.gather(*(adapter.handle(ModelRequest(Operation.PREDICTION, body)) for body in bodies))
    await adapter.close()

    assert [json.loads(cast("bytes", each.body))["predictions"] for each in answers] == [[text] for text in texts]


async def test_a_plain_step_that_fails_is_named() -> None:
    """And the next request gets its turn."""

    class Failing(Model):
        def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return payload["instances"]

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return {"predictions": [1 / each for each in payload]}

    adapter = PythonModelAdapter(Failing("failing"))
    await adapter.load({})
    with pytest.raises(UserCodeError, match=r"Failing\.predict raised ZeroDivisionError"):
        await adapter.handle(ModelRequest(Operation.PREDICTION, b'{"instances": [0]}'))
    answer = await adapter.handle(ModelRequest(Operation.PREDICTION, b'{"instances": [1]}'))
    await adapter.close()

    assert answer.body == b'{"predictions":[1.0]}'


async def test_a_repository_holds_models_by_name(tmp_path: Path) -> None:
    """A subclass loads those of a directory."""

    class Repository(ModelRepository):
        def load_model(self, name: str) -> bool:
            model = Model(name)
            model.load()
            self.update(model)
            return True

    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    repository = Repository(str(tmp_path))
    repository.load_models()
    repository.unload("b")

    assert [*repository.get_models()] == ["a"]
    assert await repository.is_model_ready("a")
    assert not await repository.is_model_ready("b")
    with pytest.raises(KeyError):
        repository.unload("b")
