"""An embedding model in Python, as a user would write it."""

import sys

import numpy as np

from appliance import ModelServer
from appliance.openai import OpenAIEncoderModel
from appliance.openai.types import Embedding, EmbeddingRequest


class Letters(OpenAIEncoderModel):
    """Counts the letters of a text."""

    def load(self) -> None:
        self.alphabet = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)

    async def create_embedding(
        self, request: EmbeddingRequest, raw_request: object = None, context: object = None
    ) -> Embedding:
        letters = [np.frombuffer(text.lower().encode(), np.uint8) for text in request.texts]
        vectors = [(each[:, None] == self.alphabet).sum(0).astype(np.float32) for each in letters]
        return Embedding(data=[{"index": i, "embedding": vector} for i, vector in enumerate(vectors)])


if __name__ == "__main__":
    letters = Letters("letters")
    letters.load()
    ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), drain_delay_seconds=0).start([letters])
