"""The base install, without an engine and without this checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import Distributions
from server_process import environment, free_port
from upstreams import Upstream

from appliance.core.distribution import install_command

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, distributions: Distributions) -> Path:
    """A virtual environment with the wheel of the appliance and what it needs, and no extra."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    uv = [sys.executable, "-m", "uv"]
    into = ["--python", str(folder / "bin/python")]
    pins = ["--constraints", str(ROOT / "requirements/cpu.txt")]
    for command in (
        [*uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--quiet", "--compile-bytecode", *into, *pins, str(distributions.wheel)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "bin/python"


@pytest.mark.slow
def test_a_file_is_checked_without_any_engine(python: Path, tmp_path: Path) -> None:
    """`validate` and `schema` work, the schemas are in the wheel, and arguments of vLLM are checked without vLLM."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "models:\n- name: a\n  class: generative\n  storage: {uri: /x}\n"
        "  engine: {args: {enable_prefix_cachin: true}}\n"
    )

    bad = subprocess.run([python, "-m", "appliance", "validate", file], capture_output=True, text=True, cwd=tmp_path)
    schema = subprocess.run([python, "-m", "appliance", "schema"], capture_output=True, text=True, cwd=tmp_path)

    assert bad.returncode == 2
    assert 'did you mean "enable_prefix_caching"?' in bad.stdout
    assert json.loads(schema.stdout)["title"]


@pytest.mark.slow
def test_type_checkers_see_the_types(python: Path, tmp_path: Path) -> None:
    """The wheel has `py.typed`: mypy finds a wrong argument in code that uses the Python API."""
    (tmp_path / "program.py").write_text("from appliance import ModelServer\nModelServer(http_port='8080')\n")

    words = ["--python-executable", str(python), "--follow-imports", "silent", "--config-file", "", "program.py"]
    done = subprocess.run([sys.executable, "-m", "mypy", *words], capture_output=True, text=True, cwd=tmp_path)

    assert 'Argument "http_port" to "ModelServer" has incompatible type "str"' in done.stdout, done.stdout


@pytest.mark.slow
def test_serving_without_the_engine_names_the_extra(python: Path, tmp_path: Path) -> None:
    """The model fails with what to install, and `smoke` says so."""
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "config.yaml"
    file.write_text(f"models: [{{name: a, class: generative, storage: {{uri: {tmp_path}}}}}]\n")

    done = subprocess.run(
        [python, "-m", "appliance", "smoke", file],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(APPLIANCE__SERVER__PORT=str(free_port())),
    )

    assert done.returncode == 1
    assert any(f"install it with: {install_command(extra)}" in done.stderr for extra in ("cpu", "gpu"))


@pytest.mark.slow
def test_a_proxy_needs_nothing_else(python: Path, tmp_path: Path) -> None:
    """It starts, answers, streams and stops with no engine to import."""
    file = tmp_path / "proxy.yaml"
    with Upstream() as upstream:
        file.write_text(
            f"models: [{{name: ours, class: proxy, upstreams: [{{url: {upstream.url}}}]}}]\n"
            "expect:\n"
            "- {path: /v1/embeddings, body: {model: ours, input: a}, contains: embedding}\n"
            "- {path: /v1/chat/completions, body: {model: ours, messages: [], stream: true}, contains: '[DONE]'}\n"
        )
        done = subprocess.run(
            [python, "-m", "appliance", "smoke", file], capture_output=True, text=True, cwd=tmp_path, check=False
        )
    engines = subprocess.run([python, "-c", "import vllm"], capture_output=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert engines.returncode != 0


@pytest.mark.slow
def test_a_port_for_grpc_without_grpc_names_the_extra(python: Path, tmp_path: Path) -> None:
    """Before anything starts; and without one, nothing misses it."""
    file = tmp_path / "config.yaml"
    file.write_text("models: [{name: a, class: proxy, upstreams: [{url: 'http://127.0.0.1:9'}]}]\n")
    port, grpc_port = free_port(), free_port()
    sets = [f"server.port={port}", f"server.grpc_port={grpc_port}"]
    words = [word for change in sets for word in ("--set", change)]

    done = subprocess.run([python, "-m", "appliance", "serve", file, *words], capture_output=True, text=True)

    assert done.returncode == 2
    assert "pip install 'model-appliance[grpc]'" in done.stdout + done.stderr


_MODEL = """
from appliance.openai import OpenAIGenerativeModel

class Parrot(OpenAIGenerativeModel):
    async def create_chat_completion(self, request, raw_request=None, context=None):
        return {"choices": [{"message": {"role": "assistant", "content": request.messages[-1]["content"]}}]}
"""


@pytest.mark.slow
def test_a_model_in_python_needs_no_engine(python: Path, tmp_path: Path) -> None:
    """It is served from a file with nothing but the base install, and keeps its promise."""
    (tmp_path / "parrots.py").write_text(_MODEL)
    body = {"messages": [{"role": "user", "content": "polly"}]}
    promise = {"path": "/v1/chat/completions", "body": body, "contains": '"content":"polly"'}
    model = {"name": "a", "class": "generative", "engine": {"python": "parrots:Parrot"}}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"models": [model], "expect": [promise]}))

    done = subprocess.run([python, "-m", "appliance", "smoke", file], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "every check passed" in done.stdout
