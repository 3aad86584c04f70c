"""The documentation holds: its configs are valid, its commands and programs run, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import click
from server_launcher import run_appliance
from server_process import free_port, wait_until

from appliance.cli.main import main
from appliance.storage.filesystems.registry import FILESYSTEMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)(?: [^\n]*)?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)

# What a part of a file is validated with.
_MODEL = "models: [{name: smollm2, class: proxy, upstreams: [{url: 'http://localhost:1'}]}]\n"

# Commands that need neither a network nor a server.
_OFFLINE = {"completion", "config", "diff", "key", "schema", "validate"}

# Programs of others; what follows them is not checked.
_FOREIGN = {
    "apt",
    "cd",
    "curl",
    "export",
    "git",
    "kubectl",
    "pip",
    "pipx",
    "podman",
    "python3",
    "uv",
    "uvx",
    ".",
    "source",
}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language in a page, without those that are a file of the repository."""
    found = [text for _, name, text in BLOCK.findall(page.read_text()) if name == language]
    return [text for text in found if not text.startswith("--8<--")]


def commands(page: Path) -> list[list[str]]:
    """The words of each command in a page, without assignments before it."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    parts = [shlex.split(part, comments=True) for line in lines for part in re.split(r" && | \| ", line)]
    parts = [words[: words.index(">")] if ">" in words else words for words in parts]
    named = [[word for index, word in enumerate(words) if index or "=" not in word] for words in parts]
    return [words for words in named if words]


def parse(command: click.Command, words: Sequence[str], parent: click.Context | None = None) -> None:
    """Parse a command's words as click does, without running anything."""
    is_group = isinstance(command, click.Group)
    context = command.make_context(command.name, list(words), parent, resilient_parsing=is_group)
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        below = command.get_command(context, words[0])
        assert below is not None, words
        parse(below, words[1:], context)


def test_every_config_validates(tmp_path: Path) -> None:
    """What a reader copies is a valid file, alone or beside a model."""
    for page in PAGES:
        for number, text in enumerate(blocks(page, "yaml")):
            config = text if re.search(r"^models:", text, re.MULTILINE) else _MODEL + text
            (tmp_path / f"{page.parent.name}-{page.stem}-{number}.yaml").write_text(config)

    done = run_appliance("validate", "--without-secrets", *tmp_path.iterdir())

    assert done.returncode == 0, done.stdout


def test_every_command_exists() -> None:
    """Our commands parse, with their options and arguments; recipes are in the Justfile, bodies of `curl` are JSON."""
    recipes = set(re.findall(r"^([a-z][a-z-]*)(?: [^:]*)?:", (ROOT / "Justfile").read_text(), re.MULTILINE))
    for page in PAGES:
        for words in commands(page):
            if words[0] == "appliance":
                parse(main, words[1:])
            elif words[0] == "just":
                assert words[1] in recipes, (page, words)
            else:
                assert words[0] in _FOREIGN, (page, words)
            if words[0] == "curl" and "-d" in words:
                json.loads(words[words.index("-d") + 1])


def test_commands_without_a_network_run(tmp_path: Path) -> None:
    """They end well in a folder with the files that the docs name."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in ("appliance.yaml", "config.yaml", "old.yaml", "new.yaml"):
        shutil.copy(ROOT / "examples/chat.yaml", tmp_path / name)
    ours = {tuple(words[1:]) for page in PAGES for words in commands(page) if words[0] == "appliance"}
    offline = sorted(words for words in ours if words[0] in _OFFLINE and "--deep" not in words)

    failed = {
        words: done.stdout + done.stderr
        for words in offline
        if (done := run_appliance(*words, folder=tmp_path)).returncode
    }

    assert offline
    assert failed == {}


def test_every_program_compiles() -> None:
    """What a reader copies is Python, and what it imports of ours exists."""
    for page in PAGES:
        for text in blocks(page, "python"):
            compile(text, str(page), "exec")
            exec("\n".join(re.findall(r"^(?:from|import) appliance.*$", text, re.MULTILINE)), {})


def test_the_program_of_the_guide_serves(tmp_path: Path) -> None:
    """What a reader copies answers; on a free port here."""
    text, *_ = blocks(ROOT / "docs/guides/python.md", "python")
    port = free_port()
    file = tmp_path / "program.py"
    file.write_text(text.replace("8080", str(port)))

    with subprocess.Popen([sys.executable, str(file)], stderr=subprocess.DEVNULL) as program:
        try:
            wait_until(lambda: _chat(port) == "Hello", 60)
        finally:
            program.send_signal(signal.SIGINT)

    assert program.returncode == 0


def _chat(port: int) -> str | None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/chat/completions", body, timeout=10) as response:
            answer = json.loads(response.read())
    except OSError:
        return None
    content: str = answer["choices"][0]["message"]["content"]
    return content


def test_every_example_is_shown() -> None:
    """The page of examples has each file of the folder."""
    shown = set(re.findall(r'^--8<-- "examples/([\w-]+\.yaml)"', (ROOT / "docs/examples.md").read_text(), re.MULTILINE))

    assert shown == {path.name for path in (ROOT / "examples").glob("*.yaml")}


def test_every_scheme_is_listed() -> None:
    """The table of stores has each one; `s` stands for a scheme's encrypted twin."""
    text = (ROOT / "docs/guides/storage.md").read_text()
    rows = re.findall(r"^\| .*", text, re.MULTILINE)
    found = set(re.findall(r"`([a-z0-9]+)(?:\[s\])?://", "\n".join(rows)))

    assert found == set(FILESYSTEMS) - {"abfss", "http", "s3a", "ssh"}


def test_the_map_shows_every_package() -> None:
    """The tree in the overview of the architecture lists the packages of `appliance/`, and nothing else."""
    text = (ROOT / "docs/architecture/overview.md").read_text()
    rows = re.findall(r"^[├└]── ([a-z_/ ]+/)  ", text, re.MULTILINE)
    shown = {name.split("/")[0] for row in rows for name in row.split()}

    assert shown == {path.parent.name for path in (ROOT / "appliance").glob("*/__init__.py")}
