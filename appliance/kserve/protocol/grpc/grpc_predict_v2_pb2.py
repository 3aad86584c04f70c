"""KServe's module of this name: the messages of the protocol."""

from appliance.tensors.grpc.inference_pb2 import *  # noqa: F403 - generated
