"""Every kind of error, as a file with its messages beside it; run this file to write the messages again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.cli.options import load_config
from appliance.core.errors import ConfigError

BROKEN = Path(__file__).parents[1] / "broken"
FILES = sorted(BROKEN.glob("*.yaml"))


def messages(file: Path) -> str:
    """What loading the file says, with the name as it is seen from the file's own directory."""
    with pytest.raises(ConfigError) as caught:
        load_config(Path(file.name), environ={})
    return f"{caught.value}\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_error_has_its_location_and_its_remedy(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken config gives exactly the messages beside it: location, path, error, remedy, line and caret."""
    monkeypatch.chdir(BROKEN)

    assert messages(file) == file.with_suffix(".txt").read_text(encoding="utf-8")


def test_every_file_of_messages_has_its_config() -> None:
    """No messages are left over from a case that is gone."""
    assert {file.stem for file in BROKEN.glob("*.txt")} == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_errors_are_in_the_order_of_the_file(file: Path) -> None:
    """Problems are sorted by line and column, so that a file can be mended from top to bottom."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ={})
    places = [(problem.line or 0, problem.column or 0) for problem in caught.value.problems]

    assert places == sorted(places)
    assert (0, 0) not in places


if __name__ == "__main__":
    os.chdir(BROKEN)
    for file in FILES:
        file.with_suffix(".txt").write_text(messages(file), encoding="utf-8")
