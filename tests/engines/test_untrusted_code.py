"""What can run code when it is read: pickled weights and a model's own Python, refused unless allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.config.engine import EngineConfig
from appliance.config.layout import LayoutConfig
from appliance.core.errors import LoadError
from appliance.core.model import SINGLE_FRONT_END
from appliance.engines.vllm.engine import prepare
from appliance.engines.vllm.engine_args import EngineSpec, engine_arguments, require_weights
from appliance.engines.vllm.fork_server import StartupTimings
from appliance.engines.vllm.multi_frontend import FrontendRendezvous

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LAYOUT = LayoutConfig(tensor_parallel=2)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A directory with pickled weights alone."""
    import torch

    torch.save({"weight": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    return tmp_path


def _read(artifact: Path, load_format: str) -> dict[str, list[float]]:
    """The weights as vLLM's own loader reads them."""
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    loader = DefaultModelLoader(LoadConfig(load_format=load_format, use_tqdm_on_load=False))
    source = DefaultModelLoader.Source(str(artifact), None)
    return {name: tensor.tolist() for name, tensor in loader._get_weights_iterator(source)}


def test_pickled_weights_are_refused_before_the_engine_starts(pickled: Path) -> None:
    """The error says how to allow them."""
    with pytest.raises(LoadError, match="allow_pickle: true"):
        require_weights(pickled)


def test_allowed_pickles_are_what_the_engine_reads(pickled: Path) -> None:
    """vLLM is told a format that reads them, and gets the very numbers."""
    setup = EngineSpec("a", pickled, LAYOUT, EngineConfig(), allow_pickle=True)

    require_weights(pickled, allow_pickle=True)
    assert _read(pickled, engine_arguments(setup, on_cpu=True)["load_format"]) == {"weight": [1.0, 1.0, 1.0]}


def test_safetensors_are_read_even_where_pickles_are_allowed(pickled: Path) -> None:
    """With both there, the pickle is never opened."""
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, pickled / "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"not even a pickle")
    setup = EngineSpec("a", pickled, LAYOUT, EngineConfig(), allow_pickle=True)

    assert _read(pickled, engine_arguments(setup, on_cpu=True)["load_format"]) == {"weight": [0.0, 0.0, 0.0]}


def test_a_pickle_that_runs_code_is_refused_even_where_pickles_are_allowed(tmp_path: Path) -> None:
    """vLLM's unpickler takes tensors only, so allowing pickles does not mean allowing everything."""
    import pickle

    import torch

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value] # any callable and its arguments

    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        _read(tmp_path, "hf")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """A model whose config is a Python class of its own, which leaves a file where it runs."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "of_its_own",
        "auto_map": {"AutoConfig": "configuration.Own"},
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 128,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration.py").write_text(
        "from transformers import LlamaConfig\n"
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "class Own(LlamaConfig):\n    model_type = 'of_its_own'\n"
    )
    return tmp_path


def _understand(artifact: Path, **engine: bool) -> None:
    """Have vLLM read the model's config."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    setup = EngineSpec("a", artifact, LAYOUT, EngineConfig(**engine))
    arguments = engine_arguments(setup, on_cpu=True) | {"skip_tokenizer_init": True}
    AsyncEngineArgs(**arguments).create_model_config()


def test_a_models_own_code_is_not_run(coded: Path) -> None:
    """By default it is an error that names the option, and nothing has run."""
    with pytest.raises(ValueError, match="trust_remote_code"):
        _understand(coded)
    assert not (coded / "ran").exists()


def test_a_models_own_code_runs_where_it_is_trusted(coded: Path) -> None:
    """`engine.trust_remote_code: true` reaches vLLM."""
    _understand(coded, trust_remote_code=True)

    assert (coded / "ran").exists()


def test_running_a_models_own_code_is_said_aloud(coded: Path) -> None:
    """A warning in the log at each start."""
    (coded / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    setup = EngineSpec("a", coded, LAYOUT, EngineConfig(trust_remote_code=True))

    with capture_logs() as logs:
        prepare(setup, FrontendRendezvous(SINGLE_FRONT_END, "a"), StartupTimings())

    assert [(each["event"], each["log_level"]) for each in logs] == [("model.remote_code_trusted", "warning")]
