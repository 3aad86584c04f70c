"""Command lines of vLLM mean the same after their conversion: vLLM's own parser and our engine arguments agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from appliance.cli.options import load_config
from appliance.config.engine import KEYS, EngineConfig
from appliance.config.json_schema import OPTIONS, engine_schema
from appliance.config.models import EncoderConfig, GenerativeConfig
from appliance.convert.command_line import Option, Word, parse
from appliance.convert.draft import Draft
from appliance.convert.shell import after_serve, commands
from appliance.convert.source import convert_words
from appliance.engines.vllm.engine_args import EngineSpec, Pooler, engine_arguments

LINES = list(commands((Path(__file__).parent / "command_lines.txt").read_text()))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

OPTIONS_OF = engine_schema()[OPTIONS]

# What names the model or its files is compared apart.
NAMES = {"model", "served_model_name", "tokenizer", "revision"}

# vLLM's own names of number formats.
DTYPES = {"half": "float16", "float": "float32"}


@cache
def _parser() -> Any:  # Any: vLLM's
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def _theirs(words: list[str]) -> Any:
    """The engine arguments that vLLM's own server makes of its command line."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    arguments = _parser().parse_args(words)
    arguments.model = arguments.model_tag or arguments.model
    return AsyncEngineArgs.from_cli_args(arguments)


def _ours(model: GenerativeConfig | EncoderConfig, folder: Path) -> Any:
    """The engine arguments that our engine makes of a model of the config."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    assert isinstance(model.engine, EngineConfig)
    assert model.layout != "auto"
    parser = model.reasoning_parser if isinstance(model, GenerativeConfig) else None
    pooler = Pooler("embed") if isinstance(model, EncoderConfig) else None
    spec = EngineSpec(model.name, folder, model.layout, model.engine, reasoning_parser=parser, pooler=pooler)
    return AsyncEngineArgs(**engine_arguments(spec, on_cpu=False))


def _model(draft: Draft, folder: Path) -> GenerativeConfig | EncoderConfig:
    file = folder / "config.yaml"
    file.write_text(draft.text())
    (model,) = load_config(file, environ={}).config.models
    assert isinstance(model, GenerativeConfig | EncoderConfig)
    return model


@cache
def _fields() -> frozenset[str]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return frozenset(each.name for each in dataclasses.fields(AsyncEngineArgs))


@pytest.mark.parametrize("words", LINES, ids=lambda words: " ".join(word.text for word in words[2:])[:60])
def test_a_converted_command_line_has_the_same_engine_arguments(
    words: list[Word], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Each field that the command line gives has vLLM's value; each other one has the value that it has in a config
    which sets nothing, or in a vLLM without options.
    """
    # Some configs have a random id.
    monkeypatch.setattr("uuid.uuid4", lambda: UUID(int=17))
    given = parse(after_serve(words) or []).options
    draft = convert_words(words, "command line")
    theirs = _theirs([word.text for word in words[2:]])
    ours = _ours(_model(draft, tmp_path), tmp_path)
    bare = _ours(_model(convert_words(_bare(given), "bare"), tmp_path), tmp_path)

    unlike = {}
    for name in sorted(_fields() - NAMES):
        made, expected = getattr(ours, name), [getattr(theirs, name)]
        expected += [] if name in given else [getattr(bare, name)]
        if not any(_is_same(made, each) for each in expected):
            unlike[name] = (made, *expected)
    assert draft.unkept == []
    assert unlike == {}


def test_a_file_of_options_has_the_same_engine_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM reads `--config` as we do: lists, mappings and booleans in it, and the command line over it."""
    monkeypatch.setattr("uuid.uuid4", lambda: UUID(int=17))
    options = tmp_path / "options.yaml"
    options.write_text(
        """
        model: Qwen/Qwen3-8B
        max_model_len: 8k
        tensor-parallel-size: 4
        enable-prefix-caching: false
        enforce-eager: true
        trust-remote-code: false
        allowed-media-domains: [one, two]
        speculative-config: {method: ngram, num_speculative_tokens: 3, prompt_lookup_max: 4}
        compilation-config: {mode: 3}
        """
    )
    words = ["--config", str(options), "-tp", "2", "--compilation-config.cudagraph_mode", "FULL"]
    theirs = _theirs(words)
    draft = convert_words([Word(text, 1) for text in ("vllm", "serve", *words)], "command line")
    ours = _ours(_model(draft, tmp_path), tmp_path)

    given = ("max_model_len", "tensor_parallel_size", "enable_prefix_caching", "enforce_eager", "trust_remote_code")
    for name in (*given, "allowed_media_domains", "speculative_config", "compilation_config"):
        assert _is_same(getattr(ours, name), getattr(theirs, name)), name
    assert draft.unkept == []


def _bare(given: Mapping[str, Option]) -> list[Word]:
    """A command line with no more than the kind of model."""
    runner = ["--runner", given["runner"].value] if "runner" in given else []
    return [Word(text, 1) for text in ("vllm", "serve", "Qwen/Qwen3-8B", *runner)]


def _is_same(ours: Any, theirs: Any) -> bool:
    """Whether two values mean the same to vLLM's engine, which reads mappings, names and numbers in text too."""
    if isinstance(ours, dict) and dataclasses.is_dataclass(theirs) and not isinstance(theirs, type):
        ours = type(theirs)(**ours)
    if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        return repr(ours) == repr(theirs)
    if isinstance(theirs, str) and isinstance(ours, str):
        return ours.lower() == DTYPES.get(theirs, theirs).lower()
    return bool(ours == theirs) or (isinstance(theirs, str) and str(ours) == theirs)


def test_the_command_lines_give_every_option_that_the_schema_has() -> None:
    """Every engine argument with an option is on one of 60 lines or more, and every key that replaces one."""
    given = {name for words in LINES for name in parse(after_serve(words) or []).options}

    assert len(LINES) >= 60
    assert (engine_schema()["properties"].keys() | KEYS.keys()) & OPTIONS_OF.keys() - given == set()


def test_every_engine_argument_has_an_option() -> None:
    """The two that vLLM leaves out can only be written in the file."""
    assert engine_schema()["properties"].keys() - OPTIONS_OF.keys() == {"mamba_config", "enable_mm_processor_stats"}
