"""Models written in Python that a file names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
from server_process import ServerProcess

from appliance.config import load
from appliance.config.models import ModelConfig
from appliance.core.errors import LoadError
from appliance.core.model import Model, ModelRequest, Operation
from appliance.models.dispatch import PeerClient
from appliance.models.factory import ModelFactory

NOBODY = PeerClient(lambda name: pytest.fail(name))

MODELS = """
from pathlib import Path
from appliance import Model
from appliance.openai import OpenAIEncoderModel, OpenAIGenerativeModel

class Reader(OpenAIGenerativeModel):
    def __init__(self, name, model_dir, greeting, punctuation="!"):
        super().__init__(name)
        self.text = (Path(model_dir) / "name.txt").read_text()
        self.words = greeting, punctuation

    async def create_chat_completion(self, request, raw_request=None, context=None):
        assert self.model_dir.name == "weights"
        text = f"{self.words[0]} {self.text}{self.words[1]}"
        return {"choices": [{"message": {"role": "assistant", "content": text}}]}

class Silent(OpenAIGenerativeModel):
    pass

class Completing(OpenAIGenerativeModel):
    async def create_completion(self, request, raw_request=None, context=None):
        return {"choices": [{"text": "a"}]}

class Nameless(Completing):
    def __init__(self, name):
        pass

class Broken(Completing):
    def __init__(self, name):
        raise ValueError("no such thing")

class Ranker(OpenAIEncoderModel):
    async def create_rerank(self, request, raw_request=None, context=None):
        return {"results": []}

class Tensors(Model):
    def predict(self, payload, headers=None):
        return {"predictions": [str(self.model_dir)]}

class NotAModel:
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the modules `user_models`, `user_broken` and weights, from which things are started."""
    (tmp_path / "user_models.py").write_text(MODELS)
    (tmp_path / "user_broken.py").write_text("import user_missing")
    (tmp_path / "user_raising.py").write_text("raise RuntimeError('at import')")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/name.txt").write_text("Ada")
    monkeypatch.chdir(tmp_path)
    # What is appended is taken back.
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("user_models", "user_broken", "user_raising"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def config(folder: Path, engine: Mapping[str, Any], class_: str = "generative", **keys: Any) -> ModelConfig:
    """The one model of a file with this engine."""
    model = {"name": "mine", "class": class_, "engine": engine, **keys}
    file = folder / "config.yaml"
    file.write_text(json.dumps({"models": [model]}))
    return load(file).config.models[0]


async def load_model(made: ModelConfig, **artifacts: Path) -> Model:
    """Its model, loaded."""
    model = ModelFactory().create(made, NOBODY)
    await model.load(artifacts)
    return model


def test_a_file_with_a_python_model_is_served(
    module: Path, serve: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its storage, its arguments, its aliases, and everything that any model has."""
    file = module / "config.yaml"
    engine = {"python": "user_models:Reader", "args": {"greeting": "Hello"}}
    model = {"name": "mine", "class": "generative", "aliases": ["gpt-4o"], "engine": engine}
    file.write_text(json.dumps({"models": [model | {"storage": {"uri": str(module / "weights")}}]}))

    server = serve(file=file).wait_until_ready(60)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])

    assert answer.choices[0].message.content == "Hello Ada!"
    assert answer.model == "gpt-4o"
    assert [event["to"] for event in server.events() if event["event"] == "model.state_changed"] == [
        "fetching",
        "loading",
        "proving",
        "ready",
    ]
    assert server.stop() == 0


def test_a_file_is_checked_without_running_its_code(module: Path) -> None:
    """Validating imports nothing of the user's."""
    ModelFactory().create(config(module, {"python": "user_raising:Model"}), NOBODY)

    assert "user_raising" not in sys.modules


async def test_a_class_without_storage_is_loaded(module: Path) -> None:
    """A model in Python may have no bytes; its operations are known once it is made."""
    made = config(module, {"python": "user_models:Ranker"}, "encoder")
    before = ModelFactory().create(made, NOBODY).operations
    model = await load_model(made)
    proof = model.warmup_request

    assert made.storages == {}
    assert before == {Operation.EMBEDDING, Operation.RERANK}
    assert model.operations == {Operation.RERANK}
    assert proof is not None
    assert (await model.handle(proof)).status == 200
    await model.check()
    await model.close()


async def test_predictor_in_python_needs_no_storage(module: Path) -> None:
    """Its operations are known once it is made; a class that answers OpenAI's clients alone is none."""
    made = config(module, {"python": "user_models:Tensors"}, "predictor")
    before = ModelFactory().create(made, NOBODY).operations
    model = await load_model(made)

    assert before == {Operation.INFERENCE, Operation.PREDICTION, Operation.EXPLANATION}
    assert model.operations == {Operation.INFERENCE, Operation.PREDICTION}
    with pytest.raises(LoadError, match="has none of the methods explain or predict"):
        await load_model(config(module, {"python": "user_models:Ranker"}, "predictor"))


async def test_tensor_class_is_allowed_in_any_model_class(module: Path) -> None:
    """What it is asked says what it is."""
    model = await load_model(config(module, {"python": "user_models:Tensors"}), model=module)
    reply = await model.handle(ModelRequest(Operation.PREDICTION, b"{}"))

    assert reply.body == json.dumps({"predictions": [str(module)]}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"python": "user_absent:Model"}, r"user_absent:Model: there is no module 'user_absent'; install its module"),
        ({"python": "user_broken:Model"}, r"user_broken:Model: there is no module 'user_missing'; install"),
        ({"python": "user_raising:Model"}, r"importing 'user_raising' failed: RuntimeError: at import; the log says"),
        ({"python": "user_models:Readr"}, r'has no such class; did you mean "Reader"\?'),
        ({"python": "user_models:NotAModel"}, r"is not a subclass of a model of appliance\.openai"),
        (
            {"python": "user_models:Silent"},
            r"Silent is abstract: it must override one of create_chat_completion, create_completion",
        ),
        ({"python": "user_models:Ranker"}, r"declare the model with another class"),
        ({"python": "user_models:Nameless"}, r"has no name; have its __init__ call super\(\)"),
        ({"python": "user_models:Broken"}, r"cannot be made: ValueError: no such thing"),
        ({"python": "user_models:Reader"}, r"engine\.args: .* missing a required argument"),
        (
            {"python": "user_models:Reader", "args": {"greting": "Hi"}},
            r'user_models:Reader takes no \'greting\'; did you mean "greeting"\?',
        ),
    ],
)
async def test_error_of_a_wrong_class_is_raised_by_load(module: Path, engine: Mapping[str, Any], message: str) -> None:
    """The error names the key, the class, the fault and the remedy."""
    with pytest.raises(LoadError, match=message) as fault:
        await load_model(config(module, engine), model=module / "weights")

    assert str(fault.value).startswith("engine.")


async def test_operations_of_a_class_are_reached_through_peers(module: Path) -> None:
    """A constructor that takes `model_dir` gets it."""
    engine = {"python": "user_models:Reader", "args": {"greeting": "Hi", "punctuation": "?"}}
    model = await load_model(config(module, engine), model=module / "weights")
    reply = await model.handle(ModelRequest(Operation.CHAT_COMPLETION, b'{"messages": [{"role": "user"}]}'))

    assert isinstance(reply.body, bytes)
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "Hi Ada?"
