"""The YAML that a config may be, and what is refused before it can do harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config import LoadedConfig, load
from appliance.core.errors import ConfigError

MODEL = "{name: smollm2, class: generative, storage: {uri: file:///models/smollm2}}"
MINIMAL = f"models: [{MODEL}]\n"

# Nested in every style there is, each of about 100 kB.
DEEP = {
    "open lists": "a: " + "[" * 100_000,
    "closed lists": "[" * 50_000 + "]" * 50_000,
    "open mappings": "a: " + "{a: " * 25_000,
    "closed mappings": "{a: " * 20_000 + "1" + "}" * 20_000,
    "block lists": "- " * 50_000,
    "block mappings": "".join(" " * depth + "a:\n" for depth in range(440)),
    "keys of keys": "? " * 50_000,
}

# Ten of ten of ten ..., in every way that a node can be used again.
BOMBS = {
    "lists": "x-0: &a0 [1]\n" + "".join(f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
    "mappings": "x-0: &a0 {k: 1}\n"
    + "".join(f"x-{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(10))}}}\n" for n in range(1, 10)),
    "merges": "x-0: &a0 {k: 1}\n"
    + "".join(f"x-{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)),
    "a chain": "x-0: &a0 {k: 1}\n" + "".join(f"x-{n}: &a{n} {{a: *a{n - 1}}}\n" for n in range(1, 1500)),
    "a chain of merges": "x-0: &a0 {k: 1}\n" + "".join(f"x-{n}: &a{n} {{<<: *a{n - 1}}}\n" for n in range(1, 1500)),
}


def test_a_minimal_config_is_three_keys_of_one_model(load_text: Callable[..., LoadedConfig]) -> None:
    """Name, class and storage of one model are enough; everything else has a default."""
    config = load_text(MINIMAL).config

    assert config.models[0].names == ("smollm2",)
    assert config.server.port == 8080


def test_words_of_yaml_1_1_are_text(load_text: Callable[..., LoadedConfig]) -> None:
    """`yes`, `off`, dates and base-60 numbers are text, as in YAML 1.2."""
    config = load_text(MINIMAL + "expect: [{path: /, body: [yes, off, 2001-01-01, 12:30:00, 0o17, =]}]\n").config

    assert config.expect[0].body == ["yes", "off", "2001-01-01", "12:30:00", 15, "="]


def test_aliases_and_merge_keys_work_from_free_keys(load_text: Callable[..., LoadedConfig]) -> None:
    """An anchor under a free key can be used whole or merged, and a mapping's own keys win over merged ones."""
    text = """\
x-engine: &engine {max_model_len: 1024, max_num_seqs: 4}
x-more: &more {max_num_seqs: 8, enforce_eager: true}
models:
  - name: a
    class: generative
    storage: &storage {uri: file:///a, x-note: {free: at any depth}}
    engine: *engine
  - name: b
    class: generative
    storage: *storage
    engine:
      max_model_len: 2048
      <<: [*engine, *more]
"""
    first, second = load_text(text).config.models

    assert first.engine.max_model_len == 1024  # type: ignore[attr-defined] # a generative section, by its class
    assert second.engine.model_dump(exclude_unset=True) == {  # type: ignore[attr-defined] # as above
        "max_model_len": 2048,
        "max_num_seqs": 4,
        "enforce_eager": True,
    }


def test_free_keys_are_dropped_from_sections_and_engine_arguments(load_text: Callable[..., LoadedConfig]) -> None:
    """A free key never reaches the config, nor vLLM."""
    text = MINIMAL.replace("}]", ", x-a: 1, engine: {x-b: 2, args: {x-c: 3, seed: 4}}}]")

    model = load_text(text).config.models[0]

    assert model.engine.args == {"seed": 4}  # type: ignore[attr-defined] # a generative section, by its class


def test_an_anchor_may_be_set_again(load_text: Callable[..., LoadedConfig]) -> None:
    """Of two anchors with one name the nearest before the alias counts, without a warning."""
    text = MINIMAL + "x-a: &port 1\nx-b: &port 9000\nserver: {port: *port}\n"

    assert load_text(text).config.server.port == 9000


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    """A file saved by an editor on Windows loads, and its positions are right."""
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode().replace(b"\n", b"\r\n") + b"server:\r\n  prot: 1\r\n")

    with pytest.raises(ConfigError) as caught:
        load(path, environ={})

    assert [(each.line, each.column, each.path) for each in caught.value.problems] == [(3, 3, "server.prot")]


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_deep_nesting_is_refused_at_once(text: str, load_text: Callable[..., LoadedConfig]) -> None:
    """100 kB of nesting is one problem with a location, found within seconds."""
    start = time.monotonic()

    with pytest.raises(ConfigError, match="nested deeper than 50 levels; must be flatter") as caught:
        load_text(text)

    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].line is not None
    assert time.monotonic() - start < 10


def test_an_alias_bomb_is_reported_at_the_alias_that_exceeds_the_limit(load_text: Callable[..., LoadedConfig]) -> None:
    """What aliases stand for is counted without following them."""
    lines = ["x-a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [
        f"x-{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]

    with pytest.raises(ConfigError, match=r"\*e makes more than 100000 values of the file") as caught:
        load_text("\n".join([*lines, MINIMAL]))

    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (6, 10)


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_alias_bombs_are_refused(text: str, load_text: Callable[..., LoadedConfig]) -> None:
    """Aliases that stand for more than a config can hold are one problem, found before they fill the memory."""
    start = time.monotonic()

    message = r"\*\w+ (makes more than 100000 values of|nests the file deeper than 50 levels)"
    with pytest.raises(ConfigError, match=message):
        load_text(MINIMAL + text)

    assert time.monotonic() - start < 20


def test_a_very_large_file_is_refused(load_text: Callable[..., LoadedConfig]) -> None:
    """More than a ConfigMap can hold is no config."""
    with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
        load_text(MINIMAL + "#" * 1024 * 1024)


@pytest.mark.parametrize("content", [b"\x7fELF\x02\0\xff\x1b[2J", "models: []".encode("utf-16")])
def test_a_file_that_is_no_text_is_named_without_its_bytes(tmp_path: Path, content: bytes) -> None:
    """A terminal would act on some of them, and none says more."""
    path = tmp_path / "model.bin"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert str(caught.value) == f"{path}: is binary or UTF-16; must be YAML in UTF-8"


def test_a_missing_file_is_a_problem_of_the_config(tmp_path: Path) -> None:
    """A path where there is nothing is a problem with the reason."""
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load(tmp_path / "none.yaml")


def test_a_directory_is_a_problem_of_the_config(tmp_path: Path) -> None:
    """A path of a directory is a problem with the reason."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_without_permission_is_a_problem_of_the_config(tmp_path: Path) -> None:
    """A file without permission is a problem with the reason."""
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    path.chmod(0)
    if _can_read(path):
        pytest.skip("permissions do not hold for this user")

    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(path)


def _can_read(path: Path) -> bool:
    try:
        path.read_text()
    except PermissionError:
        return False
    return True
