"""Encoders in ONNX Runtime answer as those in vLLM do."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoding.conftest import EXAMPLES
from encoding.passages import TEXTS
from onnx_export import FLOAT32, INT8, export
from onnxruntime.quantization import QuantType, quantize_dynamic
from predictors.test_onnx_weights import WEIGHTS, adding
from predictors.test_predictors import NOBODY
from server_process import ServerProcess, failed_expectations
from storage.range_server import serving

from appliance.cli.expectations import ExpectationError, check_body
from appliance.config import load
from appliance.core.errors import EngineDeadError, LoadError, MissingExtraError
from appliance.core.model import Model, ModelRequest, Operation
from appliance.engines.onnx.batcher import Batcher
from appliance.models.factory import ModelFactory
from appliance.planner.predictor_plan import plan_predictor

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EXAMPLE = EXAMPLES / "embeddings-onnx.yaml"

QUERY = "Which city is the capital of France?"
_OTHER_KEYS = {"id", "created", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"}

DOCUMENTS = ["Cats sleep most of the day.", "Paris is the capital of France.", "Berlin is the capital of Germany."]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, minilm: Path, heads: dict[str, Path]) -> dict[str, Path]:
    """MiniLM, a cross-encoder and a classifier as ONNX files."""
    root = tmp_path_factory.mktemp("onnx")
    models = {"minilm": minilm, "cross": heads["cross"], "mood": heads["mood"]}
    return {name: export(path, root / name) for name, path in models.items()}


@pytest.fixture(scope="module")
def onnx_server(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The same models as `server` and `heads_server` have."""
    folder = tmp_path_factory.mktemp("onnx-server")
    own: dict[str, dict[str, Any]] = {"short": {"dimensions": 128}, "raw": {"pooling": "cls", "normalize": False}}
    models = [
        {"name": name, "class": "encoder", "storage": {"uri": str(path)}, "engine": {"backend": "onnx"}, **keys}
        for name, path, keys in [
            *((name, path, {}) for name, path in exported.items()),
            *((name, exported["minilm"], keys) for name, keys in own.items()),
        ]
    ]
    file = folder / "onnx.yaml"
    file.write_text(json.dumps({"models": models}))
    served = ServerProcess(file, folder / "server.log").wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


def _vectors(answer: Any) -> Any:  # Any: JSON values, and an array of `(texts, dimensions)`
    return np.array([each["embedding"] for each in answer["data"]])


def test_embeddings_usage_and_order_are_those_of_vllm(server: ServerProcess, onnx_server: ServerProcess) -> None:
    """Fifty texts of many lengths and scripts, the longest cut, are within a cosine distance of 0.0001."""
    body = {"model": "minilm", "input": list(TEXTS), "truncate_prompt_tokens": -1}

    (_, theirs), (status, ours) = (each.post("/v1/embeddings", body) for each in (server, onnx_server))

    assert status == 200
    assert 1 - (_vectors(ours) * _vectors(theirs)).sum(axis=1).min() < 1e-4
    assert ours["usage"] == theirs["usage"]
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize(
    ("model", "more"),
    [("short", {}), ("short", {"dimensions": 32}), ("raw", {}), ("short", {"input": [[101, 3000, 102], [101, 102]]})],
)
def test_the_keys_of_the_config_and_of_requests_mean_the_same(
    heads_server: ServerProcess, onnx_server: ServerProcess, model: str, more: Any
) -> None:
    """`dimensions`, `pooling` and `normalize`, and ids of tokens in place of texts."""
    body = {"model": model, "input": [QUERY, *DOCUMENTS], **more}

    (_, theirs), (status, ours) = (each.post("/v1/embeddings", body) for each in (heads_server, onnx_server))

    assert status == 200
    assert _vectors(ours) == pytest.approx(_vectors(theirs), abs=2e-3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"model": "cross", "query": QUERY, "documents": DOCUMENTS, "top_n": 2}),
        ("/rerank", {"model": "short", "query": QUERY, "documents": [{"text": text} for text in DOCUMENTS]}),
        ("/score", {"model": "cross", "text_1": QUERY, "text_2": DOCUMENTS}),
        ("/score", {"model": "short", "text_1": DOCUMENTS, "text_2": [QUERY] * 3}),
        ("/classify", {"model": "mood", "input": DOCUMENTS}),
        ("/classify", {"model": "cross", "input": QUERY}),
    ],
)
def test_rankings_scores_and_classes_are_those_of_vllm(
    heads_server: ServerProcess, onnx_server: ServerProcess, path: str, body: Any
) -> None:
    """Each field is the same but for ids, times, and numbers within 0.001."""
    (_, theirs), (status, ours) = (each.post(path, body) for each in (heads_server, onnx_server))

    assert status == 200, ours
    assert list(_leaves(ours)) == pytest.approx(list(_leaves(theirs)), abs=1e-3)


def _leaves(value: Any) -> Iterator[Any]:  # Any: JSON values
    """Yield every key and value, but for those of ids and times, and what a usage has for generated text."""
    if isinstance(value, dict):
        for key in sorted(value.keys() - _OTHER_KEYS):
            yield key
            yield from _leaves(value[key])
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": ["a", "word " * 400]}, "input"),
        ({"input": ["a", "word " * 400_000]}, "input"),
        ({"input": [[30522]]}, "input"),
        ({"input": ["a", [101]]}, "input"),
        ({"input": []}, "input"),
        ({"dimensions": 12}, "dimensions"),
        ({"truncate_prompt_tokens": 257}, "truncate_prompt_tokens"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"use_activation": False}, "use_activation"),
        ({"messages": [{"role": "user", "content": "Hello"}]}, "messages"),
    ],
)
def test_what_cannot_be_embedded_is_refused(onnx_server: ServerProcess, more: Any, param: str) -> None:
    """It is 400 and names the field at fault."""
    status, answer = onnx_server.post("/v1/embeddings", {"model": "minilm", "input": "a", **more})

    assert (status, answer["error"]["param"]) == (400, param)


def test_the_listing_is_that_of_vllm(server: ServerProcess, onnx_server: ServerProcess) -> None:
    """The task, where it comes from, the longest text and the dimensions."""
    theirs, ours = (each.get("/v1/models/minilm")[1] for each in (server, onnx_server))

    for fact in ("task", "task_source", "max_model_len", "dimensions"):
        assert ours[fact] == theirs[fact]


def test_the_probe_shows_the_planned_and_the_measured_memory(onnx_server: ServerProcess) -> None:
    """Planned is the size of the files; what the load took is of the same order."""
    plans = {model["name"]: model["plan"] for model in onnx_server.get("/readyz")[1]["models"]}

    plan = plans["minilm"]
    assert 90_000_000 < plan["planned"]["weight_bytes"] < 95_000_000
    assert 50_000_000 < plan["measured"]["weight_bytes"] < 400_000_000


def test_the_example_holds(onnx_server: ServerProcess) -> None:
    """Its `expect` has the published similarity of two sentences."""
    assert failed_expectations(onnx_server, EXAMPLE) == []


def test_int8_weights_without_a_scale_for_each_channel_fail_the_example(minilm: Path, tmp_path: Path) -> None:
    """Their embeddings are further from the reference than its `expect` takes; the float32 weights pass it."""
    expectation = next(each for each in load(EXAMPLE).config.expect if each.cosine)
    export(minilm, tmp_path)
    quantize_dynamic(tmp_path / FLOAT32, tmp_path / INT8, weight_type=QuantType.QInt8)

    async def embed(file: str) -> str:
        model = _model(tmp_path, tmp_path, engine={"backend": "onnx", "file": file})
        await model.load({"model": tmp_path})
        body = json.dumps(expectation.body).encode()
        response = await model.handle(ModelRequest(Operation.EMBEDDING, body))
        await model.close()
        assert isinstance(response.body, bytes)
        return response.body.decode()

    assert "cosine of at least 1.0000" in check_body(expectation, asyncio.run(embed(FLOAT32)), EXAMPLES)
    with pytest.raises(ExpectationError, match=r"whose cosine with embeddings-onnx.json is 0\.9.*at least 0\.99"):
        check_body(expectation, asyncio.run(embed(INT8)), EXAMPLES)


def test_of_a_text_far_too_long_only_the_beginning_is_read(onnx_server: ServerProcess) -> None:
    """Its embedding is that of the beginning, at whichever end others are cut."""
    words = "Ünïcode antidisestablishmentarianism of the quick brown fox. " * 60
    bodies = [
        {"model": "minilm", "input": [text], "truncate_prompt_tokens": 64, "truncation_side": side}
        for text, side in [(words, "right"), (words * 500, "right"), (words, "left"), ("a " * 90_000 + words, "left")]
    ]

    vectors = [_vectors(onnx_server.post("/v1/embeddings", body)[1])[0] for body in bodies]

    assert vectors[0] == pytest.approx(vectors[1])
    assert vectors[2] == pytest.approx(vectors[3])
    assert vectors[0] != pytest.approx(vectors[2], abs=1e-3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": "minilm", "prompt": QUERY}),
        ("/tokenize", {"model": "minilm", "prompt": "Ünïcode " * 300, "return_token_strs": True}),
        ("/tokenize", {"model": "minilm", "prompt": QUERY, "add_special_tokens": False}),
        ("/detokenize", {"model": "minilm", "tokens": [101, 2029, 2103, 2003, 1029, 102]}),
        ("/pooling", {"model": "minilm", "input": DOCUMENTS}),
    ],
)
def test_the_tokenizer_and_pooling_answer_as_those_of_vllm(
    server: ServerProcess, onnx_server: ServerProcess, path: str, body: Any
) -> None:
    """Each field is the same but for ids, times, and numbers within 0.001; long texts are tokenized too."""
    (_, theirs), (status, ours) = (each.post(path, body) for each in (server, onnx_server))

    assert status == 200, ours
    assert list(_leaves(ours)) == pytest.approx(list(_leaves(theirs)), abs=1e-3)


def test_texts_and_their_tokens_are_counted(onnx_server: ServerProcess) -> None:
    """By vLLM's names: a text is a request, and no series belongs to an engine that does not run."""
    before = _metrics(onnx_server)
    status, answer = onnx_server.post("/v1/embeddings", {"model": "raw", "input": DOCUMENTS})
    after = _metrics(onnx_server)

    assert status == 200
    texts = 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="raw"}'
    tokens = 'vllm:prompt_tokens_total{engine="0",model_name="raw"}'
    assert after[texts] - before[texts] == 3
    assert after[tokens] - before[tokens] == answer["usage"]["prompt_tokens"]
    assert after['vllm:num_requests_running{engine="0",model_name="raw"}'] == 0


def _metrics(server: ServerProcess) -> dict[str, float]:
    lines = server.stream("/metrics", None).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def test_without_its_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model fails with the command that installs it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingExtraError, match=r"model-appliance\[onnx\]"):
        await _model(tmp_path, tmp_path).load({"model": tmp_path})


def _model(folder: Path, tmp_path: Path, **keys: Any) -> Model:
    file = tmp_path / "model.yaml"
    model = {"name": "m", "class": "encoder", "storage": {"uri": str(folder)}, "engine": {"backend": "onnx"}, **keys}
    file.write_text(json.dumps({"models": [model]}))
    (config,) = load(file).config.models
    return ModelFactory().create(config, NOBODY)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"onnx/model.onnx": None, "onnx/model_O2.onnx": ""}, "set engine.file to one that it has: onnx/model_O2.onnx"),
        ({"onnx/model.onnx": None}, "export the model"),
        ({"tokenizer.json": None}, "tokenizer.json: is missing"),
        ({"modules.json": '[{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "2"}]'}, "module Dense"),
        ({"1_Pooling/config.json": '{"pooling_mode_max_tokens": true}'}, "must be cls, mean or last"),
        ({"modules.json": None}, "set pooling"),
    ],
)
async def test_a_directory_that_is_no_such_model_says_what_to_do(
    exported: dict[str, Path], tmp_path: Path, files: dict[str, str | None], reason: str
) -> None:
    """The error names the file, what is wrong with it, and the remedy."""
    folder = tmp_path / "model"
    for source in exported["minilm"].rglob("*"):
        if source.is_file():
            target = folder / source.relative_to(exported["minilm"])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text)

    with pytest.raises(LoadError, match=reason):
        await _model(folder, tmp_path).load({"model": folder})


async def test_weights_outside_of_the_models_directory_are_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    """A model could otherwise read any file of the server, and answer with it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHTS)
    for name in ("config.json", "tokenizer.json", "sentence_bert_config.json"):
        (folder / name).write_text((exported["minilm"] / name).read_text())
    (folder / "model.onnx").write_bytes(adding("../secret"))
    model = _model(folder, tmp_path, pooling="mean")

    with pytest.raises(LoadError, match="ONNX Runtime cannot load it"):
        await model.load({"model": folder})


def test_of_a_store_only_onnx_files_are_planned_and_fetched(exported: dict[str, Path], tmp_path: Path) -> None:
    """Neither safetensors nor pickles nor other ONNX files; the plan has the same bytes, and fetches nothing."""
    model = exported["cross"]
    names = ("config.json", "tokenizer.json", "onnx/model.onnx")
    files = {name: (model / name).read_bytes() for name in names}
    others = dict.fromkeys(("model.safetensors", "model.bin", "onnx/model_O2.onnx", "README.md"), b"x" * 1000)
    engine = {"backend": "onnx"}
    with serving(files | others) as store:
        file = tmp_path / "model.yaml"
        file.write_text(
            json.dumps({"models": [{"name": "m", "class": "encoder", "storage": {"uri": store.uri}, "engine": engine}]})
        )
        loaded = load(file, [f"storage.cache_dir={tmp_path / 'models'}"]).config
        plan = plan_predictor(loaded.models[0], loaded.storage)
        paths = ModelFactory().materialize(loaded.models[0], loaded.storage, lambda *_: None)

    fetched = [path for path in paths["model"].rglob("*") if path.is_file()]
    assert {path.relative_to(paths["model"]).as_posix() for path in fetched} == set(names)
    assert plan is not None
    assert (plan.framework, plan.size_bytes) == ("onnx", sum(map(len, files.values())))


class _SlowEncoder:
    """Computes a batch when it is let, and remembers its rows."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def compute(self, batch: Sequence[tuple[list[int], list[int]]]) -> Any:  # Any: an array
        self.turn.acquire()
        self.batches.append([ids[0] for ids, _ in batch])
        return np.array([[ids[0]] for ids, _ in batch], np.float32)


def _texts(first: int, count: int, length: int) -> list[tuple[list[int], list[int]]]:
    return [([first + index] * length, [0] * length) for index in range(count)]


async def test_a_single_text_does_not_wait_for_a_large_request() -> None:
    """It is in the second batch, though thousands of texts came before it; each request gets its rows in order."""
    encoder = _SlowEncoder()
    batcher = Batcher(encoder, "m")  # type: ignore[arg-type] # what it needs of one
    large = asyncio.create_task(batcher.compute(_texts(1000, 100, 256)))
    await asyncio.sleep(0)
    small = asyncio.create_task(batcher.compute(_texts(1, 1, 16)))
    await asyncio.sleep(0)

    encoder.turn.release(2)
    assert [row.tolist() for row in await asyncio.wait_for(small, 60)] == [[1]]
    assert not large.done()
    encoder.turn.release(100)
    assert [int(row[0]) for row in await asyncio.wait_for(large, 60)] == list(range(1000, 1100))
    # 2,048 tokens at most, and no short text beside long ones.
    assert [len(batch) for batch in encoder.batches[:3]] == [8, 1, 8]
    batcher.close()


async def test_a_cancelled_request_is_not_computed() -> None:
    """Of its texts, only those of the running batch are; after the end there are no answers."""
    encoder = _SlowEncoder()
    batcher = Batcher(encoder, "m")  # type: ignore[arg-type] # as above
    cancelled = asyncio.create_task(batcher.compute(_texts(1000, 100, 256)))
    await asyncio.sleep(0)
    kept = asyncio.create_task(batcher.compute(_texts(1, 3, 16)))
    await asyncio.sleep(0)

    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    encoder.turn.release(10)
    assert len(await asyncio.wait_for(kept, 60)) == 3
    assert sum(map(len, encoder.batches)) <= 8 + 3
    batcher.check()
    waiting = asyncio.create_task(batcher.compute(_texts(1, 1, 1)))
    await asyncio.sleep(0)
    batcher.close()

    with pytest.raises(EngineDeadError):
        await batcher.compute(_texts(1, 1, 1))
    await asyncio.gather(waiting, return_exceptions=True)
