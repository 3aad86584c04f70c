"""Transformers of the shape of KServe's samples, in front of the predictors."""

import argparse
import base64

import numpy as np
from kserve import InferInput, InferRequest, Model, ModelServer, logging, model_server
from kserve.model import PredictorProtocol


class Transformer(Model):
    """Numbers in, numbers out, in either version of the protocol: the predictor gets half of them."""

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


class ImageTransformer(Model):
    """Images as the predictor's numbers."""

    def __init__(self, name):
        super().__init__(name, return_response_headers=True)
        self.ready = True

    async def preprocess(self, payload, headers=None):
        payload = await super().preprocess(payload, headers)
        if isinstance(payload, InferRequest):
            images = payload.inputs[0].data
            images = images if payload.from_grpc else [base64.b64decode(each) for each in images]
        else:
            headers["request-type"] = "v1"
            images = [base64.b64decode(each["image"]["b64"]) for each in payload["instances"]]
        tensors = np.asarray([np.frombuffer(each, dtype=np.uint8) for each in images], dtype=np.float32) / 255
        infer_inputs = [InferInput(name="INPUT__0", datatype="FP32", shape=list(tensors.shape), data=tensors)]
        if self.predictor_config.predictor_protocol == PredictorProtocol.REST_V1.value:
            return {"instances": [{"data": tensor.tolist()} for tensor in tensors]}
        return InferRequest(model_name=self.name, infer_inputs=infer_inputs)

    async def postprocess(self, infer_response, headers=None, response_headers=None):
        infer_response = await super().postprocess(infer_response, headers, response_headers)
        if "request-type" not in headers or isinstance(infer_response, dict):
            return infer_response
        return {"predictions": infer_response.outputs[0].as_numpy().tolist()}


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    ModelServer(workers=1).start([Transformer(args.model_name), ImageTransformer("image"), Transformer("stray")])
