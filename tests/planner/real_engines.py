"""vLLM itself, asked what it makes of a config: a program that imports it once, and forks an engine for each question.

A question is a line of JSON on its stdin, the answer a line on its stdout.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from appliance.models.factory import ModelFactory

Answer = dict[str, Any]  # Any: JSON values


class RealEngines:
    """The program, from outside; ``with`` it."""

    def __enter__(self) -> Self:
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "VLLM_CONFIGURE_LOGGING": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "planner.real_engines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def save(self, config: Mapping[str, Any], folder: Path, quantize: str | None = None) -> None:  # Any: JSON values
        """Write a model of a `config.json` with weights of no meaning, as transformers saves them."""
        answer = self._ask({"save": config, "folder": str(folder), "quantize": quantize})
        assert "refused" not in answer, answer

    def start(self, file: Path) -> Answer:
        """Start the engine of the one model of a config, and end it: what it holds.

        Or `refused`: why there is none.
        """
        return self._ask({"start": str(file)})

    def _ask(self, question: Mapping[str, Any]) -> Answer:  # Any: JSON values
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: Answer = json.loads(self._process.stdout.readline())
        return answer


def _start(file: str) -> Answer:
    """The engine as `appliance serve` starts it, without a front end."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    from appliance.config import load
    from appliance.config.storage import GlobalStorageConfig
    from appliance.core.model import SINGLE_FRONT_END
    from appliance.engines.vllm.engine_args import engine_arguments
    from appliance.engines.vllm.env import layout_environment
    from appliance.models.vllm_model import VllmModel

    (model_config,) = load(Path(file)).config.models
    artifacts = ModelFactory().materialize(model_config, GlobalStorageConfig(), lambda *_: None)
    model = ModelFactory().create(model_config, SimpleNamespace(front_end=SINGLE_FRONT_END))
    assert isinstance(model, VllmModel)
    setup = model.engine_spec(artifacts)
    os.environ.update(layout_environment(setup.layout))
    _import_model(setup.artifact)
    config = AsyncEngineArgs(**engine_arguments(setup, on_cpu=True)).create_engine_config(
        UsageContext.OPENAI_API_SERVER
    )
    # vLLM says spawn, which would import it once more for each rank.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    core = EngineCore(config, Executor.get_class(config), log_stats=False)
    weights = core.collective_rpc("weight_bytes")
    if len(weights) > 1:
        core.model_executor.shutdown()
    return {
        "weight_bytes": weights,
        "kv_tokens": config.cache_config.kv_cache_size_tokens,
        "max_model_len": config.model_config.max_model_len,
    }


def _import_model(folder: Path) -> None:
    """Import the model's class here: where vLLM has not met it yet, it starts a process of its own to look at it."""
    from vllm import ModelRegistry

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _save(config: Mapping[str, Any], folder: Path, quantize: str | None) -> Answer:  # Any: JSON values
    import torch
    import transformers
    from planner.quantizing import quantized

    is_decoder = config["architectures"][0].endswith("ForCausalLM")
    kind = transformers.AutoModelForCausalLM if is_decoder else transformers.AutoModel
    made = kind.from_config(transformers.AutoConfig.for_model(**config), dtype=getattr(torch, config["dtype"]))
    made.save_pretrained(folder)
    if not is_decoder:
        # vLLM's pooling wants a tokenizer; a decoder does without.
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    if quantize:
        quantized(folder, quantize)
    return {}


def _answer(question: Mapping[str, Any], tell: Connection, log: Path) -> None:  # Any: JSON values
    # A rank that fails says why in the log alone.
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        if "start" in question:
            tell.send(_start(question["start"]))
        else:
            tell.send(_save(question["save"], Path(question["folder"]), question["quantize"]))
    except Exception as error:
        tell.send({"refused": f"{type(error).__name__}: {error}\n{log.read_text()}"})
    # Nothing of the engine needs a tidy end, which takes longer than its start.
    os._exit(0)


def _main() -> None:
    import vllm.engine.arg_utils
    import vllm.model_executor.model_loader.base_loader
    import vllm.v1.engine.core
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401 - as the others: for its time
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    import appliance.config  # noqa: F401 - likewise

    load_general_plugins()
    current_platform.register_triton_kernel_overrides()
    # vLLM collects garbage at every turn of a start, and all of this is none.
    gc.collect()
    gc.freeze()
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            hear, tell = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(json.loads(line), tell, Path(folder, "log")))
            process.start()
            tell.close()
            try:
                answer = hear.recv()
            except EOFError:
                answer = {"refused": "its process died"}
            print(json.dumps(answer), flush=True)
            process.join()


if __name__ == "__main__":
    _main()
