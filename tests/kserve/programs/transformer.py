"""A transformer of the shape of KServe's samples: its predictor gets half of the numbers."""

import argparse

import numpy as np
from kserve import InferInput, InferRequest, Model, ModelServer, model_server
from kserve.model import PredictorProtocol


class Transformer(Model):
    """Numbers in, numbers out, in either version of the protocol."""

    def __init__(self, name):
        super().__init__(name, return_response_headers=True)
        self.ready = True

    def preprocess(self, payload, headers=None):
        if isinstance(payload, InferRequest):
            values = payload.inputs[0].as_numpy() / 2
        else:
            headers["request-type"] = "v1"
            values = np.asarray(payload["instances"], dtype=np.float64) / 2
        if self.predictor_config.predictor_protocol == PredictorProtocol.REST_V1.value:
            return {"instances": values.tolist()}
        tensor = InferInput(name="INPUT__0", datatype="FP64", shape=list(values.shape), data=values)
        return InferRequest(model_name=self.name, infer_inputs=[tensor], request_id="7")

    def postprocess(self, infer_response, headers=None, response_headers=None):
        if headers.get("request-type") == "v1" and not isinstance(infer_response, dict):
            return {"predictions": infer_response.outputs[0].as_numpy().tolist()}
        return infer_response


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    ModelServer().start([Transformer(args.model_name)])
