"""What vLLM mixes into its workers (``worker_extension_cls``): they import it by name before they load the model."""

from __future__ import annotations

from typing import Any

from appliance.engines.vllm import patches

patches.record_weight_bytes()


class MemoryReport:
    """A method that the front end calls on each worker."""

    get_model: Any  # of the worker it is mixed into

    def weight_bytes(self) -> int | None:
        """Return the bytes of this rank's weights as they were loaded; None if another kind of loader loaded them."""
        size: int | None = getattr(self.get_model(), "weight_bytes", None)
        return size
