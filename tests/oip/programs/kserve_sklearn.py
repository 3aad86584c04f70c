"""KServe's ModelServer with models of scikit-learn, as its own sklearnserver has them.

``python kserve_sklearn.py HTTP_PORT GRPC_PORT NAME=FILE...``
"""

from __future__ import annotations

import sys

HTTP, GRPC = int(sys.argv[1]), int(sys.argv[2])
FILES = dict(word.split("=", 1) for word in sys.argv[3:])
# KServe reads the command line while it is imported.
sys.argv[1:] = []

import joblib  # noqa: E402
from kserve import Model, ModelServer  # noqa: E402
from kserve.utils.utils import get_predict_input, get_predict_response  # noqa: E402


class Sklearn(Model):
    """Predicts with what KServe makes of a request."""

    def __init__(self, name, file, method="predict"):
        super().__init__(name)
        self.predict_rows = getattr(joblib.load(file), method)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        """In either version of the protocol."""
        return get_predict_response(payload, self.predict_rows(get_predict_input(payload)), self.name)


models = [Sklearn(name, file) for name, file in FILES.items()]
models += [Sklearn(f"{name}-probabilities", file, "predict_proba") for name, file in FILES.items()]
ModelServer(http_port=HTTP, grpc_port=GRPC, workers=1, enable_grpc=True).start(models)
