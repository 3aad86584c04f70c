"""The examples, and which of them this machine can run.

``python tests/example_files.py`` prints their paths.
"""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"

# What an example needs that a plain machine lacks.
NEEDS = {
    "chat-hf.yaml": "a hub on the network",
    "chat-two-gpus.yaml": "two GPUs",
    "embeddings-onnx.yaml": "a hub on the network",
    "everything.yaml": "a file of keys, with servers that are nowhere",
    "expert-parallel.yaml": "eight GPUs",
    "rerank.yaml": "a hub on the network",
    "two-nodes-ray.yaml": "a Ray cluster with sixteen GPUs",
    "storage.yaml": "object stores on the network",
}

NAMES = frozenset(path.name for path in EXAMPLES.glob("*.yaml"))

# What examples read from the environment, beside the addresses of upstreams.
VARIABLES = {"ASSISTANT_KEY": "sk-of-the-example-alone"}

if __name__ == "__main__":
    print(*(f"examples/{name}" for name in sorted(NAMES - NEEDS.keys())))
