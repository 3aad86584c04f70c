"""One wrong letter in a key, wherever the key stands: the error is on its line and names the right key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from appliance.config import LoadedConfig
from appliance.config.models import MODEL_CONFIGS
from appliance.config.raw_config import SourceLocation, dotted
from appliance.config.yaml_parser import read
from appliance.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
RICH = [Path(__file__).with_name(name) for name in ("rich.yaml", "rich-adapter.yaml")]
# `everything.yaml` has the keys of the rich files.
FILES = [*RICH, *sorted(set((ROOT / "examples").glob("*.yaml")) - {ROOT / "examples/everything.yaml"})]

OPEN = frozenset({"body", "defaults", "override", "parameters", "set", "warmup"})


def closed_keys(file: Path) -> Iterator[tuple[str, str, SourceLocation]]:
    """Path, text and location of every key in a closed part of the file."""
    raw = read(file)
    for path, location in raw.key_locations.items():
        parts = [str(part) for part in path]
        is_free = any(part.startswith("x-") for part in parts)
        # What stands inside JSON of the user's own, or of vLLM's, is not ours to spell, nor are names of headers.
        is_json = not OPEN.isdisjoint(parts[:-1]) or "args" in parts[:-2]
        is_json |= parts[-2:-1] == ["headers"] and not {"upstreams", "credentials"}.isdisjoint(parts)
        # The keywords of a class of the user's are known to the class alone.
        is_json |= raw.find((*path[:-2], "python")) is not None and parts[-2] == "args"
        if not is_free and not is_json:
            yield dotted(path), parts[-1], location


def misspellings(key: str) -> dict[str, str]:
    """The key with one letter wrong, by what is wrong with it."""
    middle = len(key) // 2
    return {
        "first letter gone": key[1:],
        "last letter gone": key[:-1],
        "middle letter twice": key[:middle] + key[middle] + key[middle:],
        "another letter last": key[:-1] + "q",
        "a letter added": f"{key}z",
        "neighbours swapped": key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :],
    }


KINDS = tuple(misspellings("some key"))


def assert_each_is_found(
    file: Path, load_text: Callable[..., LoadedConfig], kinds: Callable[[int], Sequence[str]]
) -> None:
    """Misspell each key of a file by itself, in the ways that `kinds` gives for its number; list what is not found."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    missed = []
    for number, (path, key, location) in enumerate(closed_keys(file)):
        start, line = location.column - 1, lines[location.line - 1]
        wrongs = misspellings(key)
        for kind in kinds(number):
            wrong = wrongs[kind]
            # A key that is a number has an error of its own.
            if wrong == key or wrong.isdigit():
                continue
            changed = [*lines]
            changed[location.line - 1] = line[:start] + wrong + line[start + len(key) :]
            with pytest.raises(ConfigError) as caught:
                load_text("".join(changed), environ={"ASSISTANT_KEY": "x" * 32})
            position = (location.line, location.column)
            at_key = [each for each in caught.value.problems if (each.line, each.column) == position]
            if not any(f'did you mean "{key}"?' in each.message for each in at_key):
                missed.append(f"{path}: {kind}: {wrong}: {caught.value}")

    assert missed == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_misspelt_key_is_found_on_its_line_with_the_right_key(
    file: Path, load_text: Callable[..., LoadedConfig]
) -> None:
    """A one-letter misspelling of any key is an error at the key that suggests the key which was meant.

    Each key has one of the misspellings, in turn.
    """
    assert_each_is_found(file, load_text, lambda number: (KINDS[number % len(KINDS)],))


@pytest.mark.long
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_misspelling_of_every_key_is_found(file: Path, load_text: Callable[..., LoadedConfig]) -> None:
    """Each key has every misspelling."""
    assert_each_is_found(file, load_text, lambda _: KINDS)


def test_every_section_is_in_the_rich_configs(load_text: Callable[..., LoadedConfig]) -> None:
    """The configs with everything in them are right, so that each misspelling is the only error."""
    config, adapters = (load_text(file.read_text(encoding="utf-8")).config for file in RICH)

    assert config.model_fields_set == set(type(config).model_fields)
    assert {type(model) for model in (*config.models, *adapters.models)} == set(MODEL_CONFIGS.values())
