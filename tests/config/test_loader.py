"""Loading as a whole: all problems in one run, and nothing but problems."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from appliance.config import LoadedConfig, load
from appliance.core.errors import ConfigError

RICH = Path(__file__).with_name("rich.yaml").read_text(encoding="utf-8")


def test_every_problem_of_every_source_is_reported_in_one_run(load_text: Callable[..., LoadedConfig]) -> None:
    """
    Errors of YAML, references, schema, validators, environment and options; those of the file first, in its order.
    """
    text = """\
models:
  - name: a
    name: b
    class: generative
    storage: {uri: "${env:UNSET}"}
    engine: {max_model_len: 0}
  - {name: a, class: generative, storage: {}}
server: {prot: 1}
"""
    with pytest.raises(ConfigError) as caught:
        load_text(text, "server.port=x", "foo", environ={"APPLIANCE__SERVER__HOST": "", "APPLIANCE__FOO": "1"})

    assert [(each.line, each.path) for each in caught.value.problems] == [
        (3, "models[0].name"),
        (5, "models[0].storage.uri"),
        (6, "models[0].engine.max_model_len"),
        (7, "models[1].name"),
        (7, "models[1].storage.uri"),
        (8, "server.prot"),
        (None, ""),
        (None, ""),
        (None, "server.host"),
        (None, "server.port"),
    ]


def test_a_list_whose_only_entry_is_wrong_is_not_called_too_short(load_text: Callable[..., LoadedConfig]) -> None:
    """The error is that of the entry, in our words alone."""
    with pytest.raises(ConfigError) as caught:
        load_text(
            "models: [{name: a, class: proxy, upstreams: [{url: http://a}]}]\n"
            "server: {api_keys: [{name: a, value: short}]}\n"
        )

    assert [problem.path for problem in caught.value.problems] == ["server.api_keys[0].value"]


def test_the_lock_file_is_beside_the_config(tmp_path: Path, load_text: Callable[..., LoadedConfig]) -> None:
    """Unless it names another one."""
    named = load_text(RICH, "storage.lock_file=/other/appliance.lock").config
    default = load_text("models: [{name: a, class: generative, storage: {uri: file:///a}}]\n").config

    assert default.storage.lock_file == tmp_path / "appliance.lock"
    assert named.storage.lock_file == Path("/other/appliance.lock")


def test_the_config_is_frozen(load_text: Callable[..., LoadedConfig]) -> None:
    """A loaded config cannot be changed."""
    config = load_text(RICH).config

    with pytest.raises(ValidationError, match="frozen"):
        config.server.port = 1  # type: ignore[misc] # what must not work


def test_importing_the_config_package_loads_nothing_heavy() -> None:
    """Checking a config works and is quick where neither an engine nor a server is installed."""
    heavy = ["torch", "vllm", "transformers", "litestar", "granian", "numpy"]
    code = f"import appliance.config, sys; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"


def test_importing_the_config_package_loads_few_modules() -> None:
    """Reading a config needs the packages `config` and `core`, and of the second little."""
    code = "import sys; from appliance.config import *; print(*(name for name in sys.modules if 'appliance' in name))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert len(done.stdout.split()) <= 45


# Pieces that mean something to YAML or to us, so that random texts get further than the first character.
WORDS = ["models:", "server:", "port", "class: ", "generative", "x-a", "<<: ", "&a ", "*a", "- ", ": ", ", ", "---\n"]
VALUES = ["!!int ", "${env:A}", "${", "$${", "true", "1", "-1e9", ".nan", "\\ud800"]
PIECES = st.sampled_from([*WORDS, *VALUES, *"\n \t{}[]'\"|>?!#%~\u2028\ufeff\x07é"])
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def problems(path: Path, raw: bytes, *overrides: str) -> str:
    """
    What is wrong with the bytes as a config, "" where nothing is; whatever else is raised, or cannot be printed, fails.
    """
    path.write_bytes(raw)
    try:
        load(path, overrides, environ={"A": "a"})
    except ConfigError as error:
        return str(error).encode().decode()
    return ""


@SETTINGS
@given(st.binary())
def test_any_bytes_are_a_config_or_problems(tmp_path: Path, raw: bytes) -> None:
    """No file at all makes loading fail in any other way than with problems."""
    assert isinstance(problems(tmp_path / "config.yaml", raw), str)


@SETTINGS
@given(st.lists(PIECES | st.characters(codec="utf-8"), max_size=40).map("".join))
def test_any_text_is_a_config_or_problems(tmp_path: Path, text: str) -> None:
    """No text, valid YAML or not, makes loading fail in any other way than with problems."""
    assert isinstance(problems(tmp_path / "config.yaml", text.encode()), str)


@SETTINGS
@given(st.integers(0, len(RICH)), st.integers(0, 30), st.lists(PIECES, max_size=3).map("".join))
def test_any_damage_to_a_config_gives_a_config_or_problems(tmp_path: Path, start: int, length: int, piece: str) -> None:
    """A config with a part replaced by something else loads or has problems."""
    assert isinstance(problems(tmp_path / "config.yaml", (RICH[:start] + piece + RICH[start + length :]).encode()), str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@SETTINGS
@given(st.data())
def test_any_value_anywhere_gives_a_config_or_problems(tmp_path: Path, data: st.DataObject) -> None:
    """Any JSON in the place of any part of a config loads or has problems."""
    config = YAML(typ="safe", pure=True).load(RICH)
    at = config
    for _ in range(data.draw(st.integers(0, 4))):
        below = at[data.draw(st.sampled_from(sorted(at)))] if isinstance(at, dict) else None
        below = below[data.draw(st.integers(0, len(below) - 1))] if isinstance(below, list) and below else below
        if not isinstance(below, dict) or not below:
            break
        at = below
    at[data.draw(st.sampled_from(sorted(at)))] = data.draw(JSON)
    path = tmp_path / "config.yaml"
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        YAML(typ="safe", pure=True).dump(config, file)

    assert isinstance(problems(path, path.read_bytes()), str)


@SETTINGS
@given(st.lists(PIECES | st.characters(), max_size=20).map("".join))
def test_any_override_gives_a_config_or_problems(tmp_path: Path, override: str) -> None:
    """No `--set` option makes loading fail in any other way than with problems."""
    assert isinstance(problems(tmp_path / "config.yaml", RICH.encode(), override, f"server.host={override}"), str)
