"""The page on converting shows what the command prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs/convert.md").read_text()
PAIR = re.compile(
    r"`appliance convert (\S+)`:\n\n```\w+\n(.*?)```\n\n```yaml\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL
)
PAIRS = PAIR.findall(PAGE)


@pytest.mark.parametrize(("name", "before", "after", "listed"), PAIRS, ids=[name for name, *_ in PAIRS])
def test_what_the_page_shows_is_what_is_printed(
    name: str, before: str, after: str, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config below each source is its conversion, and the text below that is standard error."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(before)

    done = CliRunner().invoke(main, ["convert", name])

    assert (done.exit_code, done.stdout, done.stderr) == (0, after, listed)


def test_every_source_of_the_page_is_tested() -> None:
    """One for each section of a source."""
    assert len(PAIRS) == PAGE.count("`:\n\n```") == PAGE.count("\n## ")
