"""Which file a command reads, and where its values come from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from appliance.cli import options
from appliance.cli.main import main
from appliance.cli.serve import listening_at
from appliance.config import load

PROXY = """\
models:
  - {name: a, class: proxy, upstreams: [{url: "http://127.0.0.1:9", api_key: "${env:KEY:-k-123456}"}]}
"""
BROKEN = PROXY.replace("name", "nmae")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "DEFAULT_FILES", (Path("appliance.yaml"), tmp_path / "etc" / "config.yaml"))
    return tmp_path


def _run(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, words, input=stdin)


def test_without_a_file_a_command_reads_the_one_here_or_the_containers(folder: Path) -> None:
    """appliance.yaml of the working directory goes before the file that the container mounts."""
    (folder / "etc").mkdir()
    (folder / "etc" / "config.yaml").write_text(PROXY)

    container = _run("validate")
    shutil.move(folder / "etc" / "config.yaml", folder / "appliance.yaml")
    here = _run("validate")

    assert container.stdout == f"{folder}/etc/config.yaml: good\n"
    assert here.stdout == "appliance.yaml: good\n"


@pytest.mark.parametrize("command", [["validate"], ["serve"], ["plan"], ["pull"], ["lock"], ["config"], ["smoke"]])
def test_without_any_file_a_command_says_how_to_write_one(folder: Path, command: Sequence[str]) -> None:
    """Exit code 2, with the names that were looked for."""
    done = _run(*command)

    assert done.exit_code == 2
    assert "there is no appliance.yaml and no " in done.stderr
    assert "write one with: appliance init" in done.stderr


def test_a_file_may_be_piped_in(folder: Path) -> None:
    """`-` is standard input, by which problems name it."""
    good, bad = _run("validate", "-", stdin=PROXY), _run("validate", "-", stdin=BROKEN)

    assert (good.exit_code, good.stdout) == (0, "-: good\n")
    assert (bad.exit_code, bad.stdout.partition(": ")[0]) == (2, "standard input:2:6")


def test_of_a_directory_every_config_is_checked(folder: Path) -> None:
    """YAML that is no config of ours is left alone; a directory without any is an error."""
    (folder / "configs" / "deep").mkdir(parents=True)
    (folder / "configs" / "good.yaml").write_text(PROXY)
    (folder / "configs" / "deep" / "broken.yml").write_text(BROKEN)
    (folder / "configs" / "service.yaml").write_text("kind: Service\nspec: {models: 1}\n")
    (folder / "empty").mkdir()

    done, empty = _run("validate", "configs"), _run("validate", "empty")

    assert done.exit_code == 2
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if line[0] != " "] == [
        "configs/deep/broken.yml",
        "configs/good.yaml",
    ]
    assert done.stderr == "1 problem found\n"
    assert (empty.exit_code, empty.stderr.partition(";")[0]) == (2, "empty: has no config")


def test_host_and_port_go_over_everything_else(folder: Path) -> None:
    """The options of `serve` are the last of its overrides."""
    (folder / "appliance.yaml").write_text(f"{PROXY}server: {{port: 1, host: 10.0.0.1}}\n")

    server = load(Path("appliance.yaml"), ["server.port=2", *listening_at("127.0.0.1", 3)]).config.server

    assert (server.host, server.port) == ("127.0.0.1", 3)


def test_a_config_is_shown_with_the_source_of_each_value(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines, variables and options are named beside their values; secrets are masked; defaults can be left out."""
    (folder / "appliance.yaml").write_text(PROXY)
    monkeypatch.setenv("APPLIANCE__LOGGING__LEVEL", "debug")

    whole = _run("config", "--set", "server.port=9000").stdout
    given = _run("config", "--set", "server.port=9000", "--no-defaults").stdout

    lines = {line.split("#")[0].strip(): line.partition("# ")[2] for line in whole.splitlines()}
    assert lines["- name: a"] == "appliance.yaml:2"
    assert lines["port: 9000"] == "--set server.port"
    assert lines["level: debug"] == "environment APPLIANCE__LOGGING__LEVEL"
    assert lines["host: 0.0.0.0"] == ""
    assert "k-123456" not in whole
    assert YAML(typ="safe").load(whole)["server"]["drain_seconds"] == 30
    assert YAML(typ="safe").load(given)["server"] == {"port": 9000}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(shell: str) -> None:
    """The script asks the command itself what may come next."""
    assert f"_APPLIANCE_COMPLETE={shell}_complete" in _run("completion", shell).stdout


def test_summaries_of_commands_fit_a_terminal() -> None:
    """None is cut off at 80 columns."""
    for words in ((), ("cache",)):
        listed = CliRunner().invoke(main, [*words, "--help"], env={"COLUMNS": "80"}).stdout.partition("Commands:")[2]

        assert listed
        assert "..." not in listed
