"""Names, types and labels of the metrics of a server with an engine, vLLM's among them."""

from __future__ import annotations

import pytest
from contract.golden import Golden
from contract.metrics import described
from server_process import ServerProcess

# Of ours, those that engines alone have.
OURS = ("appliance_load_part_seconds", "appliance_sequences")


def test_metrics_of_an_engine_keep_their_names_types_and_labels(
    server: ServerProcess, pytestconfig: pytest.Config
) -> None:
    """Dashboards and alerts of vLLM and of ours go by them."""
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for stream in (False, True):
        server.stream("/v1/chat/completions", {**body, "stream": stream})
    text = described(server.stream("/metrics", None).decode())
    # The others are in metrics.txt; which labels they have here depends on the tests before this one.
    lines = [line for line in text.splitlines() if line.startswith(("vllm:", *OURS))]

    golden = Golden("tests/serving/test_metric_names.py", writes=pytestconfig.getoption("--golden"))
    golden.check("metrics_vllm.txt", "\n".join(lines))
