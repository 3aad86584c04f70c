"""What vLLM mixes into its workers: they import it by name before they load the model, and only there."""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.model_executor.model_loader import base_loader

_finish = base_loader.process_weights_after_loading


@wraps(_finish)
def _weigh_and_finish(model: Any, *args: Any, **kwargs: Any) -> None:  # Any: vLLM has no types for us
    # Now or never: for a CPU they are packed anew right after, and the tensors that are left are empty.
    model.weight_bytes = sum(each.nbytes for each in model.parameters())
    _finish(model, *args, **kwargs)


base_loader.process_weights_after_loading = _weigh_and_finish


class MemoryReport:
    """What a worker can be asked beside what vLLM has it answer (``worker_extension_cls``)."""

    get_model: Any  # of the worker it is mixed into

    def weight_bytes(self) -> int | None:
        """Bytes of the weights of this rank as they were loaded; None where a loader of another kind brought them."""
        weighed: int | None = getattr(self.get_model(), "weight_bytes", None)
        return weighed
