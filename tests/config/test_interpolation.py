"""References in strings to the environment and to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config import LoadedConfig, load
from appliance.core.errors import ConfigError

CONFIG = """\
models:
  - name: smollm2
    class: generative
    storage: {{uri: '{uri}'}}
"""

RESOLVED = {
    "the environment": ("${env:BUCKET}", "s3"),
    "a part of a string": ("hf://${env:BUCKET}/a", "hf://s3/a"),
    "several in one string": ("${env:BUCKET}-${env:BUCKET}", "s3-s3"),
    "a default of an unset variable": ("${env:UNSET:-file:///a}", "file:///a"),
    "a default of an empty variable": ("${env:EMPTY:-file:///a}", "file:///a"),
    "no use of a default": ("${env:BUCKET:-file:///a}", "s3"),
    "an empty default": ("a${env:UNSET:-}", "a"),
    "an escape": ("$${env:BUCKET}", "${env:BUCKET}"),
    "dollars that are none of ours": ("$5 $BUCKET $$", "$5 $BUCKET $$"),
    "text that came from outside and looks like a reference": ("${env:REFERENCE}", "${env:BUCKET}"),
}


@pytest.mark.parametrize(("written", "read"), RESOLVED.values(), ids=RESOLVED)
def test_a_reference_becomes_what_it_names(written: str, read: str, load_text: Callable[..., LoadedConfig]) -> None:
    """References are replaced wherever they stand in a string, once, and everything else stays."""
    environ = {"BUCKET": "s3", "EMPTY": "", "REFERENCE": "${env:BUCKET}"}

    model = load_text(CONFIG.format(uri=written), environ=environ).config.models[0]

    assert model.storages["model"].uri == read


def test_a_file_is_read_without_its_last_line_end(tmp_path: Path, load_text: Callable[..., LoadedConfig]) -> None:
    """`${file:...}` is the file's text, without the line end that editors and secrets end with."""
    (tmp_path / "token").write_text("to ken\n")

    loaded = load_text(CONFIG.format(uri=f"${{file:{tmp_path}/token}}"))

    assert loaded.config.models[0].storages["model"].uri == "to ken"
    assert loaded.secrets == {"to ken"}


def test_a_relative_file_is_relative_to_the_config(tmp_path: Path, load_text: Callable[..., LoadedConfig]) -> None:
    """A relative path starts at the config's directory, wherever we were started."""
    (tmp_path / "uri.txt").write_text("file:///a")

    loaded = load_text(CONFIG.format(uri="${file:uri.txt}"))

    assert loaded.config.models[0].storages["model"].uri == "file:///a"


def test_a_file_that_is_not_text_is_a_problem(tmp_path: Path, load_text: Callable[..., LoadedConfig]) -> None:
    """Bytes that are not UTF-8 are refused at the reference's line."""
    (tmp_path / "key.der").write_bytes(b"\xff\x00")

    with pytest.raises(ConfigError, match=r"config\.yaml:4:20: models\[0\]\.storage\.uri: the file .* UTF-8"):
        load_text(CONFIG.format(uri="${file:key.der}"))


def test_a_reference_is_converted_where_it_is_the_whole_value(load_text: Callable[..., LoadedConfig]) -> None:
    """Text from outside becomes the number or flag that its place wants, in sections and in engine arguments."""
    text = """\
models:
  - name: a
    class: generative
    storage: {uri: file:///a}
    engine:
      max_model_len: ${env:LENGTH}
      enforce_eager: ${env:EAGER}
      args: {block_size: "${env:BLOCK}", enable_prefix_caching: "${env:CACHE:-true}"}
    tool_call_parser: ${env:LENGTH}
server: {port: "${env:PORT:-9000}", drain_seconds: "${env:DRAIN}"}
"""
    environ = {"LENGTH": "2048", "EAGER": "1", "BLOCK": "32", "DRAIN": "0.5"}

    config = load_text(text, environ=environ).config

    assert config.server.port == 9000
    assert config.server.drain_seconds == 0.5
    assert config.models[0].model_dump(include={"engine": {"max_model_len", "enforce_eager", "args"}}) == {
        "engine": {
            "max_model_len": 2048,
            "enforce_eager": True,
            "args": {"block_size": 32, "enable_prefix_caching": True},
        }
    }
    assert config.models[0].tool_call_parser == "2048"  # type: ignore[attr-defined] # a generative section


def test_references_under_free_keys_are_left_alone(load_text: Callable[..., LoadedConfig]) -> None:
    """What stands under a free key is the user's own; it counts only where an alias brings it into the config."""
    text = "x-storage: {uri: '${env:UNSET}'}\n" + CONFIG.format(uri="file:///a")

    assert load_text(text).secrets == frozenset()


def test_a_reference_without_its_value_is_the_only_error(tmp_path: Path) -> None:
    """Wherever it stands, in engine arguments too, it is taken for a valid value."""
    file = tmp_path / "config.yaml"
    file.write_text(
        CONFIG.format(uri="${env:UNSET}") + "    engine: {max_model_len: '${env:A}', args: {block_size: '${env:B}'}}\n"
    )

    with pytest.raises(ConfigError) as caught:
        load(file, environ={})

    found = {problem.path.rpartition(".")[2]: problem.is_unresolved for problem in caught.value.problems}
    assert found == {"uri": True, "max_model_len": True, "block_size": True}
