"""Official clients through the proxy to a scripted upstream: responses, streams, tools, embeddings, errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cohere
import pytest
from server_process import ServerProcess, environment
from upstreams import Upstream

CLIENTS = Path(__file__).parents[1] / "clients"
OPENAI_2 = "openai==2.54.0"

# What each of them must get: the upstream says back the last text, and calls the first tool it is offered.
EXPECTED = {
    "whole": "You said: grüß dich 🌍",
    "streamed": "You said: grüß dich 🌍",
    "usage": 8,
    "tool": ["get_weather", {"city": "Paris"}],
    "streamed_tool": ["get_weather", {"city": "Paris"}],
    "embeddings": [[3, 0.5, -0.25, 31], [5, 0.5, -0.25, 51]],
    "error": [404, "model_not_found"],
    "models": ["ours"],
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The upstream of all clients."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def proxy(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A proxy whose model has another name than at its upstream."""
    folder = tmp_path_factory.mktemp("clients")
    file = folder / "proxy.yaml"
    theirs = f"{{url: '{upstream.url}', model: theirs, api_key: sk-up}}"
    file.write_text(f"models: [{{name: ours, class: proxy, upstreams: [{theirs}]}}]\n")
    served = ServerProcess(file, folder / "log").wait_until_ready()
    yield served
    assert served.stop() == 0, served.log_tail()


def _run(command: Sequence[str | Path], proxy: ServerProcess, **options: Any) -> dict[str, Any]:
    done = subprocess.run(
        [*command, f"{proxy.url}/v1", "ours"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(LITELLM_LOCAL_MODEL_COST_MAP="True"),
        **options,
    )
    assert done.returncode == 0, done.stderr
    got: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return got


@pytest.mark.parametrize("client", ["openai_client.py", "litellm_client.py"])
def test_python_clients_are_served(client: str, proxy: ServerProcess) -> None:
    """OpenAI's current client, and LiteLLM."""
    assert _run([sys.executable, CLIENTS / client], proxy) == EXPECTED


@pytest.fixture(scope="module")
def openai_2() -> Sequence[str]:
    """Python with the previous major version of OpenAI's client, which cannot be installed beside the current one."""
    command = [sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--with", OPENAI_2, "python"]
    made = subprocess.run([*command, "-c", "import openai"], capture_output=True, text=True, check=False, timeout=240)
    if made.returncode != 0:
        pytest.skip(f"{OPENAI_2} cannot be installed: {made.stderr.strip()[-200:]}")
    return command


def test_the_previous_openai_client_is_served(openai_2: Sequence[str], proxy: ServerProcess) -> None:
    """Many projects still use it."""
    assert _run([*openai_2, CLIENTS / "openai_client.py"], proxy) == EXPECTED


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Path:
    """The folder of the Node clients, with their packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is not installed")
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("node-clients")
    for file in (CLIENTS / "node").iterdir():
        shutil.copy(file, folder)
    if not (folder / "node_modules/.package-lock.json").exists():
        install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        made = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
        if made.returncode != 0:
            pytest.skip(f"the clients for Node cannot be installed: {made.stderr.strip()[-200:]}")
    return folder


@pytest.mark.parametrize("client", ["openai.mjs", "ai-sdk.mjs"])
def test_node_clients_are_served(client: str, node: Path, proxy: ServerProcess) -> None:
    """OpenAI's client for Node, and Vercel's AI SDK."""
    assert _run(["node", client], proxy, cwd=node) == EXPECTED


def test_the_cohere_client_reranks(proxy: ServerProcess, upstream: Upstream) -> None:
    """With its own path, and the upstream's name of the model."""
    upstream.reset()
    with cohere.ClientV2(api_key="sk-client", base_url=proxy.url) as client:
        answer = client.rerank(
            model="ours", query="capital of France", documents=["Berlin", "Paris is the capital of France"], top_n=1
        )
    (asked,) = upstream.calls

    assert [(each.index, each.relevance_score) for each in answer.results] == [(1, 1.0)]
    assert (asked.path, asked.json()["model"]) == ("/v2/rerank", "theirs")
    assert asked.header("authorization") == "Bearer sk-up"
