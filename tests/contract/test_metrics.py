"""Names, types and labels of all metrics that need no engine.

`tests/serving/test_metric_names.py` has those of vLLM.
"""

from __future__ import annotations

from collections.abc import Callable

from contract.golden import Golden
from contract.metrics import described
from contract.server import Server, streamed_chat
from contract.stalled import stalled
from upstreams import Answer, Upstream

CHAT = "/v1/chat/completions"


def test_metrics_keep_their_names_types_and_labels(start: Callable[..., Server], golden: Golden) -> None:
    """Of a server that answered, streamed, refused, retried, and fetches."""
    with Upstream() as upstream:
        upstream.on("/vocabulary.txt", stalled)
        server = start("metrics.yaml", UPSTREAM=upstream.origin)
        server.open_gate("answer")
        for model, state in (("echo", "ready"), ("chatting", "ready"), ("fetched", "fetching")):
            server.wait_until(model, state)
        upstream.on(CHAT, Answer(503, b"{}"))
        for model in ("forwarded", "echo", "chatting", "fetched"):
            for stream in (False, True):
                body = {"model": model, "messages": [{"role": "user", "content": "hi you"}], "stream": stream}
                server.answer("POST", CHAT, body=body)
            upstream.on(CHAT)
        server.close_gate("answer")
        with streamed_chat(server, "echo"), streamed_chat(server, "echo", "queued"):
            server.answer("POST", CHAT, body={"model": "echo", "messages": [{"role": "user", "content": "hi"}]})
            server.open_gate("answer")
        text = server.stream("/metrics", None).decode()
        server.kill()

    golden.check("metrics.txt", described(text))
