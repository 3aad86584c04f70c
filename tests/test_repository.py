"""The files around the code: forms, workflow, examples, bills of materials and set-up."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reference_servers import environment

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.github-workflows", "workflows/*.yml"),
        ("vendor.github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml"),
        ("vendor.github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_the_forms_and_the_workflow_are_valid(schema: str, pattern: str) -> None:
    """GitHub shows no form and runs no workflow that its schema refuses."""
    files = sorted(map(str, (ROOT / ".github").glob(pattern)))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert files
    assert done.returncode == 0, done.stdout


def test_the_workflow_runs_what_ci_runs() -> None:
    """There is one list of steps, `.ci/run`."""
    assert "- run: bash .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_every_example_is_listed() -> None:
    """The page of the folder names each file, and no other."""
    files = {str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*") if path.is_file()}
    listed = set(re.findall(r"\[[^\]]+\]\(([^)]+)\)", (ROOT / "examples/README.md").read_text()))

    assert listed == {name for name in files if "__pycache__" not in name} - {"README.md"}


def test_the_pages_of_the_project_lead_to_files() -> None:
    """Their links exist, and their recipes are in the Justfile."""
    recipes = set(re.findall(r"^([a-z][a-z-]*)(?: [^:]*)?:(?!=)", (ROOT / "Justfile").read_text(), re.MULTILINE))
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "examples/README.md"):
        page = ROOT / name
        links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if not link.startswith("http")]

        assert [link for link in links if not (page.parent / link).exists()] == []
        assert set(re.findall(r"`(?:\w+=\S+ )?just ([a-z][a-z-]*)", page.read_text())) <= recipes


def test_the_changelog_has_a_section_for_what_comes() -> None:
    """As Keep a Changelog has it: "Unreleased" first, then versions."""
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert sections[0] == "Unreleased"
    assert all(re.match(r"\d+\.\d+\.\d+", section) for section in sections[1:])


@pytest.mark.parametrize("variant", ["proxy", *(pytest.param(name, marks=pytest.mark.long) for name in ("cpu", "gpu"))])
def test_the_bill_of_materials_has_every_pin(pytestconfig: pytest.Config, tmp_path: Path, variant: str) -> None:
    """`just sbom` writes CycloneDX with the packages of an image and their versions."""
    text = (ROOT / "Justfile").read_text()
    (recipe,) = re.findall(r"(cyclonedx-py [^;]*);", text.replace("\\\n", " "))
    (package,) = re.findall(r'^sbom_tool := "(.*)"$', text, re.MULTILINE)
    python = environment(pytestconfig, "sbom", package)
    command = recipe.replace("{{ folder }}", str(tmp_path)).replace("$variant", variant)
    path = f"{python.parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], cwd=ROOT, env={**os.environ, "PATH": path}, check=True, capture_output=True)

    bill = json.loads((tmp_path / f"sbom-{variant}.cdx.json").read_text())
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / f"requirements/{variant}.txt").read_text(), re.MULTILINE)
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "model-appliance"
    assert {(each["name"], each["version"]) for each in bill["components"]} == set(pins)


_UV = """#!/bin/sh
echo "$@" >>"$LOG"
case "$1 $*" in
    "venv "*"{python}"*) mkdir -p .venv/bin && cp "$0" .venv/bin/uv && cp "$FAKE_PYTHON" .venv/bin/python;;
    "venv "*) exit 2;;
    *" sync "*) exit "${SYNC_STATUS:-0}";;
esac
"""


@pytest.mark.parametrize(
    ("python", "sync", "status", "said"),
    [
        ("--python 3.11", 0, 0, "\n"),
        ("--no-python-downloads", 0, 0, "could not download Python 3.11; .venv has Python 3.13.1 of this machine"),
        ("none", 0, 1, "set-up needs Python 3.11, 3.12 or 3.13"),
        ("--python 3.11", 2, 2, "failed in step 2 of 3: it needs the CPU build of torch, which comes from PyTorch's"),
    ],
)
def test_the_set_up_replaces_the_environment_of_another_python(
    tmp_path: Path, python: str, sync: int, status: int, said: str
) -> None:
    """It makes one with Python 3.11, else with a later one of this machine, or says what is missing at which step."""
    just = shutil.which("just")
    if just is None:
        pytest.skip("needs just: pip install rust-just")
    for name in ("Justfile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    _write_program(tmp_path / "tools/uv", _UV.replace("{python}", python))
    _write_program(tmp_path / "python", "#!/bin/sh\necho Python 3.13.1\n")
    # One of Python 3.10.
    _write_program(tmp_path / ".venv/bin/python", "#!/bin/sh\nexit 1\n")
    _write_program(tmp_path / ".venv/bin/uv", "")
    _write_program(tmp_path / ".venv/bin/old", "")
    tools = {"LOG": str(tmp_path / "log"), "FAKE_PYTHON": str(tmp_path / "python"), "VARIANT": "cpu"}
    env = {
        **os.environ,
        **tools,
        "SYNC_STATUS": str(sync),
        "UV_FIND_LINKS": "",
        "PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}",
    }

    done = subprocess.run([just, "setup"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    assert done.returncode == status, done.stderr
    assert not (tmp_path / ".venv/bin/old").exists()
    assert said in done.stderr
    assert ("pip sync" in (tmp_path / "log").read_text()) is (status != 1)
    assert ("set-up failed" in done.stderr) is (status != 0)


def test_sigterm_of_just_serve_reaches_the_server(tmp_path: Path) -> None:
    """No shell in between ends instead, and leaves the server running."""
    just = shutil.which("just")
    if just is None:
        pytest.skip("needs just: pip install rust-just")
    shutil.copy(ROOT / "Justfile", tmp_path)
    server = "#!/bin/sh\ntrap 'echo stopped; exit' TERM\necho up\nfor each in $(seq 300); do sleep 0.1; done\n"
    _write_program(tmp_path / ".venv/bin/appliance", server)

    with subprocess.Popen([just, "--no-deps", "serve", "any.yaml"], cwd=tmp_path, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        running.terminate()
        rest = running.stdout.read()

    assert rest == b"stopped\n"


def _write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
