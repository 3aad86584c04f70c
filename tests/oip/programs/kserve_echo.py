"""KServe's ModelServer with the same echo model: ``python kserve_echo.py HTTP_PORT GRPC_PORT``."""

from __future__ import annotations

import sys

HTTP, GRPC = int(sys.argv[1]), int(sys.argv[2])
# KServe reads the command line while it is imported.
sys.argv[1:] = []

import numpy as np  # noqa: E402
from kserve import InferOutput, InferResponse, Model, ModelServer  # noqa: E402


class Echo(Model):
    """Doubles numbers and raises texts."""

    def __init__(self) -> None:
        super().__init__("echo")
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        """In either version of the protocol."""
        if isinstance(payload, dict):
            return {"predictions": [sum(row) for row in payload["instances"]]}
        outputs = []
        for tensor in payload.inputs:
            array = tensor.as_numpy()
            made = _upper(array) if array.dtype == object else array * 2
            output = InferOutput("out", list(array.shape), tensor.datatype)
            output.set_data_from_numpy(made, binary_data=False)
            outputs.append(output)
        return InferResponse(response_id=payload.id or "none", model_name=self.name, infer_outputs=outputs)


def _upper(array):
    texts = [each.decode() if isinstance(each, bytes) else each for each in array.ravel()]
    return np.array([text.upper() for text in texts], dtype=object).reshape(array.shape)


ModelServer(http_port=HTTP, grpc_port=GRPC, workers=1, enable_grpc=True).start([Echo()])
