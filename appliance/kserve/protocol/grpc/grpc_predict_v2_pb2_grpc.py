"""KServe's module of this name: stubs of the protocol."""

from appliance.tensors.grpc.inference_pb2_grpc import *  # noqa: F403 - generated
