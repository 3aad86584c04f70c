"""The command `diff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.cli.main import main
from appliance.config.base import Change
from appliance.config.diff import keys_of

ONE = 'models: [{name: one, class: proxy, upstreams: [{url: "http://a:1", api_key: "${file:key}"}]}]\n'
PAGE = (Path(__file__).parents[2] / "docs/operations/reload.md").read_text()


def _diff(folder: Path, new: str, *options: str) -> Result:
    (folder / "key").write_text("secret-key-1")
    (folder / "old.yaml").write_text(ONE)
    (folder / "new.yaml").write_text(new)
    return CliRunner().invoke(main, ["diff", str(folder / "old.yaml"), str(folder / "new.yaml"), *options])


@pytest.mark.parametrize(
    ("new", "code", "outcome"),
    [
        (f"# the same\n{ONE}", 0, "no difference"),
        (f"{ONE}logging: {{level: debug}}", 1, "applied at once: logging.level"),
        (ONE.replace("a:1", "b:1"), 1, "loaded again: one"),
        (ONE.replace("name: one", "name: one, aliases: [a]"), 1, "applied at once: models.one.aliases"),
        (ONE.replace("name: one", "name: two"), 1, "removed: one; added: two"),
        (f"{ONE}logging: {{level: debug}}\nserver: {{port: 1}}", 1, "needs a restart, before which nothing is applied"),
    ],
    ids=["same", "hot", "swap", "hot in a model", "others", "restart"],
)
def test_the_last_line_is_the_outcome(tmp_path: Path, new: str, code: int, outcome: str) -> None:
    """And the exit code is that of diff: 0 where nothing differs, 1 where something does."""
    result = _diff(tmp_path, new)

    assert result.exit_code == code
    assert result.output.splitlines()[-1].startswith(outcome)


def test_the_output_is_a_table_or_json(tmp_path: Path) -> None:
    """Path, old value, new value and change; a value that is not there is a dash, or left out."""
    new = ONE.replace('"${file:key}"}', '"${file:key}-2"}, {url: "http://b:1"}')
    table = [line.split() for line in _diff(tmp_path, new).output.splitlines()]
    rows = json.loads(_diff(tmp_path, new, "--format", "json").output)

    assert table[:3] == [
        ["PATH", "OLD", "NEW", "CHANGE"],
        ["models.one.upstreams[0].api_key", '"***"', '"***"', "swap"],
        ["models.one.upstreams[1]", "-", '{"url":', '"http://b:1"}', "swap"],
    ]
    assert rows["outcome"] == "loaded again: one"
    assert rows["differences"][1] == {
        "path": "models.one.upstreams[1]",
        "new": {"url": "http://b:1"},
        "change": "swap",
        "model": "one",
    }
    assert "secret-key-1" not in str(rows)


def test_a_bad_file_is_named_with_its_line(tmp_path: Path) -> None:
    """Exit code 2, as everywhere."""
    result = _diff(tmp_path, f"{ONE}servr: {{}}\n")

    assert result.exit_code == 2
    assert "new.yaml:2:1: servr: unknown key" in result.output


def test_the_help_and_the_docs_name_what_is_hot() -> None:
    """The help and the page about reload list every hot key."""
    help_text = CliRunner().invoke(main, ["diff", "--help"]).output

    assert [key for key in keys_of(Change.HOT) if key not in help_text] == []
    assert [key for key in keys_of(Change.HOT) if f"`{key}`" not in PAGE] == []
