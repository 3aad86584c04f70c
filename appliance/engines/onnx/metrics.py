"""Metrics of an encoder in ONNX Runtime, by vLLM's names for the same; what vLLM calls a request is one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from appliance.engines.vllm.metrics import observe_all

# Finer than vLLM's, whose first is 0.3: a batch takes milliseconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class BatchMetrics:
    """Metrics of one model; `running` and `waiting` return the texts of the current batch, and those after it."""

    def __init__(self, model: str, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        names, values = ("model_name", "engine"), (model, "0")

        def gauge(name: str, documentation: str, function: Callable[[], float]) -> None:
            Gauge(name, documentation, names, registry=registry).labels(*values).set_function(function)

        def histogram(name: str, documentation: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(name, documentation, names, registry=registry, buckets=buckets).labels(*values)

        gauge("vllm:num_requests_running", "Number of requests in model execution batches.", running)
        gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", waiting)
        success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            (*names, "finished_reason"),
            registry=registry,
        )
        self._success = success.labels(*values, "stop")
        self._tokens = Counter(
            "vllm:prompt_tokens", "Number of prefill tokens processed.", names, registry=registry
        ).labels(*values)
        self._batch = histogram(
            "vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", _TOKENS
        )
        self._queue = histogram(
            "vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request."
        )
        self._inference = histogram(
            "vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request."
        )
        self._latency = histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.")

    def add(self, tokens: int, waits: Sequence[float], seconds: float) -> None:
        """Count a batch of so many tokens, which took `seconds`, given the wait of each of its texts before it."""
        self._success.inc(len(waits))
        self._tokens.inc(tokens)
        self._batch.observe(tokens)
        observe_all(self._queue, waits)
        observe_all(self._inference, [seconds] * len(waits))
        observe_all(self._latency, [wait + seconds for wait in waits])
