"""A model of tensors in Python, as a user of KServe would write it."""

import sys
from typing import Any

import numpy as np

from appliance import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Doubling(Model):
    """Doubles numbers."""

    def predict(self, payload: Any, headers: Any = None) -> Any:
        if isinstance(payload, InferRequest):
            outputs = [InferOutput.from_numpy("doubled", each.as_numpy() * 2) for each in payload.inputs]
            return InferResponse(payload.id, self.name, outputs)
        return {"predictions": np.array(payload["instances"]) * 2}


class Labelling(Doubling):
    """Doubles, and sets a header of its response."""

    def __init__(self, name: str) -> None:
        super().__init__(name, return_response_headers=True)

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        response_headers["x-model"] = "one"
        return super().predict(payload, headers)


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), drain_delay_seconds=0).start(
        [Doubling("doubling"), Labelling("labelling")]
    )
