"""Predictors of the shape of KServe's samples, in both versions of the protocol and over gRPC."""

import argparse
import base64

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, logging, model_server
from kserve.errors import InferenceError, InvalidInput, ModelNotFound
from kserve.model_server import app
from kserve.utils.utils import generate_uuid, get_predict_input, get_predict_response
from starlette.middleware.cors import CORSMiddleware


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


class ImageModel(Model):
    """Means of images: their bytes in base64, over gRPC as they are, or prepared by a transformer."""

    def __init__(self, name):
        super().__init__(name, return_response_headers=True)
        self.load()

    def preprocess(self, payload, headers=None):
        if isinstance(payload, dict) and "instances" in payload:
            headers["request-type"] = "v1"
            instance = payload["instances"][0]
            if "data" in instance:
                return np.asarray(instance["data"])[None]
            image = base64.b64decode(instance["image"]["b64"])
        elif isinstance(payload, InferRequest):
            tensor = payload.inputs[0]
            if tensor.datatype == "FP32":
                return tensor.as_numpy()
            image = tensor.data[0] if payload.from_grpc else base64.b64decode(tensor.data[0])
        else:
            raise InvalidInput("invalid payload")
        return np.frombuffer(image, dtype=np.uint8)[None] / 255

    def predict(self, images, headers=None, response_headers=None):
        result = images.mean(axis=1, dtype=np.float32).round(3).tolist()
        if response_headers is not None:
            response_headers.update({"x-images": str(len(result))})
        if "request-type" in headers and headers["request-type"] == "v1":
            return {"predictions": result}
        output = InferOutput(name="output-0", shape=[len(result)], datatype="FP32", data=result)
        return InferResponse(model_name=self.name, infer_outputs=[output], response_id="7")


class MessageModel(Model):
    """Returns what a message of gRPC has, as a mapping."""

    def __init__(self, name):
        super().__init__(name)
        self.load()

    def predict(self, request, headers=None):
        data = request.inputs[0].as_numpy()
        outputs = [
            {
                "contents": {"fp32_contents": data.flatten().tolist()},
                "datatype": "FP32",
                "name": "output-0",
                "shape": list(data.shape),
            }
        ]
        return {"id": "7", "model_name": self.name, "outputs": outputs}


class Words(Model):
    """Streams the words of a text, and returns other bodies as they are."""

    def __init__(self, name):
        super().__init__(name)
        self.load()

    async def predict(self, payload, headers=None):
        if not isinstance(payload, dict):
            return payload[::-1]

        async def stream():
            for word in payload["instances"][0].split():
                yield word + "\n"

        return stream()


class Engine(Model):
    """Has an engine, which the server starts."""

    def __init__(self, name):
        super().__init__(name)
        self.engine = True
        self.steps = []
        self.ready = True

    def start(self):
        self.steps.append("start")

    async def start_engine(self):
        self.steps.append("start_engine")

    def predict(self, payload, headers=None):
        return {"predictions": self.steps}


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    model = Predictor(args.model_name)
    model.load()
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["https://page.example"],
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    ModelServer().start([model, ImageModel("image"), MessageModel("message"), Words("words"), Engine("engine")])
