"""A real language model in the Open Inference Protocol: the same text, whichever way it is asked for."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest
from questions import COUNT
from reference_servers import kserve_environment
from server_process import ServerProcess

PROGRAMS = Path(__file__).parent / "programs"
FIELDS = {"max_tokens": 8, "temperature": 0}


@pytest.mark.slow
def test_all_protocols_give_the_same_text(
    adapted_server: ServerProcess, grpc_port: int, pytestconfig: pytest.Config
) -> None:
    """Completions, tensors by tritonclient over HTTP and gRPC, predictions, a generation whole and as it comes."""
    python = kserve_environment(pytestconfig)
    server = adapted_server
    text = server.post("/v1/completions", {"model": "smollm2", "prompt": COUNT, **FIELDS})[1]["choices"][0]["text"]

    words = [python, PROGRAMS / "triton_text.py", str(server.port), str(grpc_port), "smollm2", COUNT]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
    predicted = server.post("/v1/models/smollm2:predict", {"instances": [COUNT], "parameters": FIELDS})[1]
    generated = server.post("/v2/models/smollm2/generate", {"text_input": COUNT, "parameters": FIELDS})[1]
    streamed = _streamed(server)

    assert "4, 5" in text
    assert json.loads(done.stdout) == {"http": text, "grpc": text}, done.stderr
    assert predicted == {"predictions": [text]}
    assert generated["text_output"] == text
    assert len(streamed) > 1
    assert "".join(streamed) == text


def _streamed(server: ServerProcess) -> list[str]:
    body = json.dumps({"text_input": COUNT, "parameters": FIELDS}).encode()
    with urllib.request.urlopen(f"{server.url}/v2/models/smollm2/generate_stream", body, timeout=120) as answer:
        events = answer.read().decode().strip().split("\n\n")
    return [json.loads(event.removeprefix("data: "))["text_output"] for event in events]
