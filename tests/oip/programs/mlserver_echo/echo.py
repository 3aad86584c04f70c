"""The same echo model for MLServer."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Echo(MLModel):
    """Doubles numbers and raises texts."""

    async def load(self) -> bool:
        """There is nothing to load."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One output for one input."""
        (tensor,) = payload.inputs
        if tensor.datatype == "BYTES":
            texts = [text.upper() for text in StringCodec.decode_input(tensor)]
            output = StringCodec.encode_output("out", texts)
            output.shape = tensor.shape
        else:
            output = NumpyCodec.encode_output("out", NumpyCodec.decode_input(tensor) * 2)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
