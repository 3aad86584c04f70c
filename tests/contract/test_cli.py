"""The command as people type it: help, exit codes, what it prints for good and bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from contract.golden import Golden, masked
from server_launcher import COMMAND, run_appliance
from server_process import free_port, wait_until

TESTS = Path(__file__).parent.parent
BROKEN = TESTS / "broken"
INPUTS = Path(__file__).parent / "inputs"

# Of the variables of Python, those that its tests are run with.
_PYTHON = {name for name in os.environ if name.startswith("PYTHON")}

# Each command with what follows it; the files are those of `inputs`.
COMMANDS = {
    "convert": ["", "missing.yaml", "bad.yaml", "vllm serve a/b --max-model-len 8k --absent 1", "vllm serve"],
    "appliance": ["", "absent", "serv", "--absent", "--version"],
    "serve": ["missing.yaml", "bad.yaml", "no_yaml.yaml", "good.yaml --absent", "broken.yaml", "nobody.yaml"],
    "validate": [
        "",
        "good.yaml",
        "good.yaml bad.yaml",
        "good.yaml bad.yaml --format json",
        "good.yaml --format xml",
        "missing.yaml",
        "good.yaml --set server.port=many",
        "good.yaml --set server.prt=1",
        "good.yaml --set server",
        "--deep good.yaml",
        "--deep weights.yaml",
        "--deep impossible.yaml",
        "--deep absent.yaml",
    ],
    "plan": ["good.yaml", "bad.yaml", "absent.yaml", "weights.yaml --gpu many", "impossible.yaml --gpu h100-80gb:8"],
    "export": ["", "compose", "compose missing.yaml", "compose bad.yaml", "helm good.yaml", "comppose good.yaml"],
    "diff": [
        "good.yaml",
        "good.yaml good.yaml",
        "good.yaml other.yaml",
        "good.yaml other.yaml --format json",
        "good.yaml bad.yaml",
    ],
    "pull": [
        "good.yaml",
        "weights.yaml",
        "weights.yaml --explain",
        "bad.yaml",
        "absent.yaml",
        "weights.yaml --frozen",
        "digest.yaml",
    ],
    "lock": ["weights.yaml", "absent.yaml", "bad.yaml"],
    "cache": [
        "",
        "absent",
        "list",
        "list --format json",
        "list --dir absent",
        "list --dir good.yaml",
        "verify",
        "prune --dry-run",
        "prune",
        "prune --older-than soon",
    ],
    "probe": ["live good.yaml", "ready good.yaml", "asleep good.yaml", "live bad.yaml"],
    "init": ["bad.yaml", "new.yaml --class genrative", "new.yaml --name a,b"],
    "key": [""],
    "schema": ["absent", "generatve"],
    "batch": [
        "",
        "absent.jsonl --config echo.yaml",
        "requests.jsonl --config bad.yaml",
        "bad.yaml --config echo.yaml",
        "requests.jsonl --config echo.yaml -o new.jsonl",
        "requests.jsonl --config echo.yaml -o new.jsonl",
        "requests.jsonl --config echo.yaml -o bad.yaml",
    ],
    "bench": ["--streams 0", "ftp://a", "http://127.0.0.1:9"],
    "top": ["ftp://a", "http://127.0.0.1:9"],
    "completion": ["csh"],
    "config": ["", "good.yaml", "bad.yaml", "good.yaml --no-defaults --set server.port=1"],
    "smoke": ["echo.yaml", "expects.yaml", "bad.yaml", "absent.yaml"],
}


class Shell:
    """Runs the command in a folder, with an environment of little; forked, unless it is to be cold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(INPUTS, folder, dirs_exist_ok=True)
        with (folder / "nobody.yaml").open("a") as file:
            file.write(f"server: {{port: {free_port()}}}\n")
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LD_LIBRARY_PATH"} | _PYTHON}
        self.environment = {**kept, "HOME": str(folder), "COLUMNS": "100", "PYTHONPATH": str(TESTS), "TERM": "dumb"}

    def run(self, *words: str, folder: Path | None = None, is_cold: bool = False) -> subprocess.CompletedProcess[str]:
        """The command with these words, once it has ended."""
        return run_appliance(*words, folder=folder or self.folder, variables=self.environment, is_cold=is_cold)

    def shown(self, *words: str, is_cold: bool = False) -> dict[str, Any]:  # Any: JSON values
        """What the command says and how it ends, with what is volatile masked."""
        done = self.run(*words, is_cold=is_cold)
        said = {"stdout": _lines(done.stdout), "stderr": _lines(done.stderr)}
        shown = {"exit_code": done.returncode, **{name: lines for name, lines in said.items() if lines}}
        return {name: masked(each, {str(self.folder): "FOLDER"}) for name, each in shown.items()}


def _lines(text: str) -> list[str]:
    """Its lines without events of a log, which have a test of their own, and without the progress of `smoke`."""
    lines = (line for line in text.splitlines() if not re.match(r" *{\"| +\d+\.\d+ s ", line))
    return [re.sub(r"\bsk-[\w-]+", "KEY", line) for line in lines]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder with the files."""
    return Shell(tmp_path)


def _commands(shell: Shell, words: Sequence[str] = ()) -> Iterator[tuple[Sequence[str], str]]:
    """Every command with its help, found by the lists in the helps themselves."""
    text = shell.run(*words, "--help").stdout
    yield words, text
    _, _, listed = text.partition("Commands:\n")
    with ThreadPoolExecutor(2) as pool:
        names = re.findall(r"^  (\w+)", listed, re.MULTILINE)
        for found in pool.map(lambda name: list(_commands(shell, [*words, name])), names):
            yield from found


def test_every_command_explains_itself(shell: Shell, golden: Golden) -> None:
    """`--help` of each; a command that comes or goes shows here too."""
    helps = {" ".join(["appliance", *words]): text for words, text in _commands(shell)}

    assert {name.split()[1] for name in helps if " " in name} == set(COMMANDS) - {"appliance"}
    golden.check("cli_help.txt", "\n".join(f"$ {name} --help\n{text}" for name, text in helps.items()))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_with_the_exit_code_of_what_is_wrong(shell: Shell, golden: Golden, command: str) -> None:
    """Exit codes and texts for good and bad input, the first of them in a new process."""
    first = [] if command == "appliance" else [command]
    typed = [" ".join([*first, rest]).strip() for rest in COMMANDS[command]]
    with ThreadPoolExecutor(2) as pool:
        shown = pool.map(lambda words: shell.shown(*words.split(), is_cold=words is typed[0]), typed)

    golden.check(f"cli_{command}.json", {f"appliance {words}": each for words, each in zip(typed, shown, strict=True)})


def test_each_broken_file_has_its_messages(shell: Shell) -> None:
    """`validate` prints the texts beside the files of `tests/broken`, which `tests/config/test_broken.py` writes."""
    files = sorted(BROKEN.glob("*.yaml"))
    done = shell.run("validate", *(file.name for file in files), folder=BROKEN)

    assert done.returncode == 2
    assert done.stdout == "".join(file.with_suffix(".txt").read_text(encoding="utf-8") for file in files)


def test_the_schema_is_the_one_that_is_published(shell: Shell) -> None:
    """`schema` prints the file of the folder `schemas`, which editors read."""
    published = (TESTS.parent / "schemas" / "appliance.schema.json").read_text(encoding="utf-8")

    assert shell.run("schema").stdout.strip() == published.strip()
    assert shell.run("schema", "proxy").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_with_exit_code_0(shell: Shell, number: signal.Signals) -> None:
    """And `probe` says that it is ready before."""
    quick = ["--set", f"server.port={free_port()}", "--set", "server.drain_delay_seconds=0"]
    log = shell.folder / "log"
    with log.open("wb") as output:
        command = [COMMAND, "serve", "echo.yaml", *quick]
        server = subprocess.Popen(command, cwd=shell.folder, env=shell.environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: shell.run("probe", "ready", "echo.yaml", *quick).stdout == "ready\n", 120, log.read_text)
        server.send_signal(number)
        assert server.wait(60) == 0, log.read_text()
    finally:
        server.kill()
        server.wait(20)


def test_a_port_that_is_taken_is_named(shell: Shell, golden: Golden) -> None:
    """Exit code 1, before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = shell.run("serve", "good.yaml", "--set", f"server.port={port}", "--set", "server.host=127.0.0.1")

    assert done.returncode == 1
    golden.check("cli_port_taken.txt", masked(json.loads(done.stderr.splitlines()[-1])["reason"]))


def test_a_host_that_is_not_this_machine_is_named(shell: Shell) -> None:
    """The remedy is another host, because the port is free."""
    done = shell.run("serve", "good.yaml", "--set", "server.host=192.0.2.1")

    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[-1])["reason"].endswith(
        "server.host must be an address of this machine, or 0.0.0.0 or :: for all of them"
    )
