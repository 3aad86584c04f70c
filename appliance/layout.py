"""
How a model sits on GPUs.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from appliance.section import Section

Degree = Annotated[int, Field(ge=1, le=1024)]


class LayoutSection(Section):
    """
    The GPU layout of one model.
    """

    tensor_parallel: Degree = 1
    """GPUs that share each layer's weights; the model's attention heads must divide by it."""

    pipeline_parallel: Degree = 1
    """Groups of GPUs that hold consecutive layers."""

    memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """
    Share of each GPU's memory the engine may take, weights and KV cache together; on a CPU, of the machine's memory.
    The shares of all models in the file must fit together; unset is vLLM's default, which is meant for a model alone.
    """

    @property
    def devices(self) -> int:
        """
        How many devices the model takes.
        """
        return self.tensor_parallel * self.pipeline_parallel
