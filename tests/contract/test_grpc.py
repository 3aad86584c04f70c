"""The gRPC service: its description, its status codes and their texts.

The messages are made from the descriptors that the server's own reflection gives, as grpcurl does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest
from contract.golden import Golden, masked
from contract.server import Server, streamed_chat
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "inference.GRPCInferenceService"
TYPES: Mapping[int, str] = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}
TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"hi"]}}
TENSOR = {"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}}
INFER = {"model_name": "sums", "inputs": [TENSOR]}


class Client:
    """Calls methods by their names."""

    def __init__(self, channel: grpc.Channel, pool: DescriptorPool) -> None:
        self.channel, self.pool = channel, pool

    def ask(
        self, method: str, fields: Mapping[str, Any] | None = None, *, key: str = "", raw: bytes = b""
    ) -> Any:  # Any: JSON values
        """The answer, or the name of the status, its text, and what came along; `raw` is sent instead of `fields`."""
        described = self.pool.FindServiceByName(SERVICE).methods_by_name[method]
        request, response = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
        call: Any = self.channel.unary_unary(f"/{SERVICE}/{method}", response_deserializer=response.FromString)
        metadata = [("authorization", f"Bearer {key}")] if key else []
        try:
            answer = call(raw or request(**(fields or {})).SerializeToString(), timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            shown = {"status": error.code().name, "details": error.details()}
            names = {each.key for each in error.trailing_metadata()}
            return {**shown, "trailers": sorted(names)} if names else shown
        return masked(
            MessageToDict(answer, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)
        )


@pytest.fixture(scope="module")
def channel(open_server: Server) -> Iterator[grpc.Channel]:
    """A connection to the server without keys."""
    with grpc.insecure_channel(f"127.0.0.1:{open_server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def reflection(channel: grpc.Channel) -> ProtoReflectionDescriptorDatabase:
    """What the server says of its services."""
    return ProtoReflectionDescriptorDatabase(channel)


@pytest.fixture(scope="module")
def pool(reflection: ProtoReflectionDescriptorDatabase) -> DescriptorPool:
    """The same as descriptors."""
    return DescriptorPool(reflection)


@pytest.fixture(scope="module")
def client(channel: grpc.Channel, pool: DescriptorPool) -> Client:
    """A client of the server without keys."""
    return Client(channel, pool)


@pytest.fixture(scope="module")
def keyed_client(keyed_server: Server, pool: DescriptorPool) -> Iterator[Client]:
    """A client of the server with keys."""
    with grpc.insecure_channel(f"127.0.0.1:{keyed_server.grpc_port}") as channel:
        yield Client(channel, pool)


def test_the_service_is_described(
    reflection: ProtoReflectionDescriptorDatabase, pool: DescriptorPool, golden: Golden
) -> None:
    """Services, methods, and fields with number and type of every message."""
    lines = [f"service {name}" for name in sorted(reflection.get_services())]
    service = pool.FindServiceByName(SERVICE)
    for method in service.methods:
        streams = "stream " if method.server_streaming else ""
        lines.append(
            f"rpc {method.name}({method.input_type.full_name}) returns ({streams}{method.output_type.full_name})"
        )
    for message in service.file.message_types_by_name.values():
        lines.extend(_fields(message))

    golden.check("grpc_service.txt", "\n".join(lines))


def _fields(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        kind = field.message_type.full_name if field.message_type else TYPES[field.type]
        yield f"{message.full_name}.{field.name} = {field.number}: {kind}{' repeated' if field.is_repeated else ''}"
    for nested in message.nested_types:
        yield from _fields(nested)


def test_errors_have_a_status_and_a_text(client: Client, open_server: Server, golden: Golden) -> None:
    """What a client does wrong, models that cannot answer, overload."""
    seen = {
        "live": client.ask("ServerLive"),
        "ready": client.ask("ServerReady"),
        "a model": client.ask("ModelReady", {"name": "echo"}),
        "what is right": client.ask("ModelInfer", INFER),
        "metadata of an unknown model": client.ask("ModelMetadata", {"name": "absent"}),
        "an unknown model": client.ask("ModelInfer", {**INFER, "model_name": "absent"}),
        "no model": client.ask("ModelInfer", {"inputs": [TENSOR]}),
        "an unknown version": client.ask("ModelInfer", {**INFER, "model_version": "7"}),
        "a model that loads": client.ask("ModelInfer", {"model_name": "late", "inputs": [TEXT]}),
        "a model without its upstream": client.ask("ModelInfer", {"model_name": "gone", "inputs": [TEXT]}),
        "a tensor for something else": client.ask("ModelInfer", {**INFER, "model_name": "lengths"}),
        "no inputs": client.ask("ModelInfer", {"model_name": "lengths"}),
        "an unknown datatype": client.ask("ModelInfer", {**INFER, "inputs": [{**TENSOR, "datatype": "FP31"}]}),
        "a shape of other elements": client.ask("ModelInfer", {**INFER, "inputs": [{**TENSOR, "shape": [3]}]}),
        "too large": client.ask("ModelInfer", {**INFER, "id": "x" * 20_001}),
        "bytes that are no message": client.ask("ModelInfer", raw=b"\xff\xff\xff"),
        "unload an unknown model": client.ask("RepositoryModelUnload", {"model_name": "absent"}),
        "load a model that loads": client.ask("RepositoryModelLoad", {"model_name": "late"}),
    }
    open_server.close_gate("answer")
    with streamed_chat(open_server, "narrow"), streamed_chat(open_server, "narrow", "queued"):
        seen["overload"] = client.ask("ModelInfer", {"model_name": "narrow", "inputs": [TEXT]})
        open_server.open_gate("answer")

    golden.check("errors_grpc.json", seen)


def test_keys_are_asked_for(keyed_client: Client, golden: Golden) -> None:
    """Status codes for strangers and for keys of too little."""
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "live": ("ServerLive", {}),
        "metadata of the server": ("ServerMetadata", {}),
        "a model": ("ModelReady", {"name": "echo"}),
        "an inference": ("ModelInfer", {"model_name": "echo", "inputs": [TEXT]}),
        "the index": ("RepositoryIndex", {}),
        "unload": ("RepositoryModelUnload", {"model_name": "echo"}),
    }
    keys = {
        "no key": "",
        "a wrong key": "key-of-nobody",
        "a key for another model": "key-for-vectors-0123456789abcdef",
        "a key for nothing": "key-of-prometheus-0123456789abcdef",
        "a key for everything": "key-for-everything-0123456789abcdef",
    }

    golden.check(
        "errors_grpc_keys.json",
        {
            f"{name}, {holder}": keyed_client.ask(method, fields, key=key)
            for name, (method, fields) in asked.items()
            for holder, key in keys.items()
        },
    )
