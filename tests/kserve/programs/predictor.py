"""A predictor of the shape of KServe's samples, in both versions of the protocol and over gRPC."""

import argparse

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, logging, model_server
from kserve.errors import InferenceError, InvalidInput, ModelNotFound
from kserve.utils.utils import generate_uuid, get_predict_input, get_predict_response


class Predictor(Model):
    """Doubles numbers and repeats texts; the first element may ask for a fault."""

    def __init__(self, name):
        super().__init__(name, return_response_headers=True)
        self.factor = None
        self.ready = False
        self.load()

    def load(self):
        self.factor = 2
        self.ready = True

    def preprocess(self, payload, headers=None):
        if isinstance(payload, dict):
            headers["request-type"] = "v1"
        return payload, get_predict_input(payload)

    async def predict(self, payload, headers=None, response_headers=None):
        payload, values = payload
        if isinstance(values, list):
            if values[0] == "invalid":
                raise InvalidInput("this input is invalid")
            if values[0] == "failure":
                raise InferenceError("the inference failed")
            if values[0] == "missing":
                raise ModelNotFound("other")
            if values[0] == "unsupported":
                raise NotImplementedError("not here")
            result = [text * self.factor for text in values]
        else:
            result = values * self.factor
        response_headers.update({"x-kind": type(values).__name__, "x-tenant": headers.get("x-tenant", "none")})
        return payload, result

    def postprocess(self, result, headers=None, response_headers=None):
        payload, values = result
        response_headers["x-type"] = headers.get("request-type", "v2")
        if isinstance(payload, InferRequest) and len(payload.inputs) > 1:
            data = payload.get_input_by_name("b").as_numpy()
            outputs = [
                InferOutput(name="list", shape=list(values.shape), datatype="FP64", data=values.flatten().tolist()),
                InferOutput(name="array", shape=list(data.shape), datatype="int32", data=data.astype(np.int32)),
            ]
            return InferResponse(model_name=self.name, infer_outputs=outputs, response_id=payload.id or generate_uuid())
        return get_predict_response(payload, values, self.name)


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    model = Predictor(args.model_name)
    model.load()
    ModelServer().start([model])
