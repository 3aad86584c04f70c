"""The README keeps its word: its YAML is good, its commands exist, its answer is the one given."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from ruamel.yaml import YAML
from server_process import environment, free_port, wait_until

from appliance.storage.filesystems.registry import FILESYSTEMS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_yaml_is_good_and_is_the_example(tmp_path: Path) -> None:
    """What a reader copies validates, and is what `just serve examples/chat.yaml` serves."""
    text, *_ = _blocks("yaml")
    file = tmp_path / "config.yaml"
    file.write_text(text)

    done = subprocess.run([sys.executable, "-m", "appliance", "validate", str(file)], capture_output=True, check=False)
    example = YAML(typ="safe").load((ROOT / "examples/chat.yaml").read_text())

    assert done.returncode == 0, done.stdout
    assert YAML(typ="safe").load(text)["models"] == example["models"]


def test_its_parts_of_a_file_are_good(tmp_path: Path) -> None:
    """What it shows of a file validates beside the models of the whole one, once the variables in it are set."""
    whole, *parts = _blocks("yaml")
    variables = {name: "x" * 32 for part in parts for name in re.findall(r"\$\{env:(\w+)\}", part)}
    file = tmp_path / "config.yaml"
    file.write_text("\n".join([whole, *parts]))

    done = subprocess.run(
        [sys.executable, "-m", "appliance", "validate", str(file)],
        env=environment(**variables),
        capture_output=True,
        check=False,
    )

    assert parts
    assert done.returncode == 0, done.stdout


def test_its_program_serves(tmp_path: Path) -> None:
    """What a reader copies answers; on a free port here."""
    (text,) = _blocks("python")
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


def test_its_commands_exist() -> None:
    """Each recipe is in the Justfile, each example on disk, and CI runs the test command."""
    commands = "\n".join(_blocks("sh"))
    recipes = re.findall(r"^([a-z][a-z-]*)(?: [^:]*)?:", (ROOT / "Justfile").read_text(), re.MULTILINE)
    used = re.findall(r"just ([a-z-]+)", README)
    test_command = next(line for line in commands.splitlines() if line.endswith("just test"))

    assert set(used) <= set(recipes)
    assert all((ROOT / path).exists() for path in re.findall(r"examples/[\w.-]+\.yaml", README))
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == test_command


def test_its_verbs_are_all_the_verbs() -> None:
    """The table of commands and `--help` agree."""
    done = subprocess.run([sys.executable, "-m", "appliance", "--help"], capture_output=True, text=True, check=True)
    offered = re.findall(r"^  ([a-z]+)  ", done.stdout.split("Commands:")[1], re.MULTILINE)

    assert set(re.findall(r"^\| `appliance ([a-z]+)", README, re.MULTILINE)) == set(offered)


def test_its_schemes_are_all_the_schemes() -> None:
    """Whoever looks for a store in the table finds each one that is there; `s` stands for a scheme's encrypted twin."""
    named = set(re.findall(r"^\| .*", README.partition("## Storage")[2].partition("\n## ")[0], re.MULTILINE))
    found = set(re.findall(r"`([a-z0-9]+)(?:\[s\])?://", "\n".join(named)))

    assert found == set(FILESYSTEMS) - {"abfss", "http", "s3a", "ssh"}


def test_its_map_shows_every_package() -> None:
    """The tree under "Architecture" lists the packages of `appliance/`, and nothing else."""
    tree = next(block for block in _blocks("text") if block.startswith("appliance/"))
    rows = (line.split("    ")[0] for line in tree.splitlines() if line.startswith(("├──", "└──")))
    shown = {name.split("/")[0] for row in rows for name in re.findall(r"[a-z_/]+(?=/)", row)}
    packages = {path.name for path in (ROOT / "appliance").iterdir() if (path / "__init__.py").exists()}

    assert shown == packages


def question() -> dict[str, object]:
    """The body of the README's curl."""
    curl = next(block for block in _blocks("sh") if block.startswith("curl"))
    body: dict[str, object] = json.loads(re.search(r"-d '(.*)'", curl, re.DOTALL)[1])  # type: ignore[index]
    return body


def answer() -> str:
    """The answer it shows."""
    return README.split("```text\n")[1].split("```")[0].strip()
