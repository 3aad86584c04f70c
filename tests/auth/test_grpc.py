"""The gate of the gRPC listener: the same keys, the same limits."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from auth_doubles import ADMIN_KEY, ALIAS_KEY, FULL_KEY, AppClient, config_with_keys
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from structlog.testing import capture_logs

from appliance.api.grpc.server import create_server
from appliance.config.limits import KeyLimitsConfig
from appliance.config.server import KeyConfig
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub

_PROBES = {"ServerLive", "ServerReady"}
_METHODS = sorted(method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)


@asynccontextmanager
async def _channel(*api_keys: KeyConfig) -> AsyncGenerator[grpc.aio.Channel]:
    of = config_with_keys(*api_keys, host="127.0.0.1", admin=True)
    async with AppClient(of) as client:
        await client.wait_until_ready()
        server, port = create_server(of, client.manager, client.manager.health, client.app.state.telemetry)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
        await server.stop(None)
        await client.manager.stop()


@pytest.fixture(scope="module")
async def channel() -> AsyncGenerator[grpc.aio.Channel]:
    """To a server whose models are ready."""
    async with _channel() as channel:
        yield channel


async def _code(channel: grpc.aio.Channel, method: str, *metadata: tuple[str, str], **fields: Any) -> grpc.StatusCode:
    stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    request = getattr(pb, f"{method}Request")(**fields)
    try:
        await getattr(stub, method)(request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", [method for method in _METHODS if method not in _PROBES])
async def test_every_method_but_the_probes_wants_a_key(channel: grpc.aio.Channel, method: str) -> None:
    """UNAUTHENTICATED without one, and with a wrong one."""
    bare = await _code(channel, method)
    wrong = await _code(channel, method, ("authorization", f"Bearer {FULL_KEY}x"))

    assert {bare, wrong} == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.parametrize("method", sorted(_PROBES))
async def test_probes_answer_everybody(channel: grpc.aio.Channel, method: str) -> None:
    """So do gRPC's own health checks."""
    health: Any = HealthStub(channel)

    assert await _code(channel, method) is grpc.StatusCode.OK
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("metadata", "name", "code"),
    [
        (("authorization", f"Bearer {FULL_KEY}"), "two", grpc.StatusCode.OK),
        (("x-api-key", FULL_KEY), "two", grpc.StatusCode.OK),
        (("authorization", f"Bearer {ALIAS_KEY}"), "uno", grpc.StatusCode.OK),
        (("authorization", f"Bearer {ALIAS_KEY}"), "two", grpc.StatusCode.NOT_FOUND),
        (("authorization", f"Bearer {ALIAS_KEY}"), "nobody", grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_key_sees_its_models(
    channel: grpc.aio.Channel, metadata: tuple[str, str], name: str, code: grpc.StatusCode
) -> None:
    """As over HTTP."""
    assert await _code(channel, "ModelMetadata", metadata, name=name) is code


@pytest.mark.parametrize("name", ["one", "two", "nobody"])
async def test_health_tells_nobody_which_models_there_are(channel: grpc.aio.Channel, name: str) -> None:
    """A model's own health needs a key for it, asked once or watched; what all models come to does not."""
    health: Any = HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=name)
    everything, nothing = (("authorization", f"Bearer {FULL_KEY}"),), (("authorization", f"Bearer {ALIAS_KEY}"),)

    codes, seen = [], []
    for metadata in ((), nothing, everything):
        try:
            await health.Check(request, metadata=metadata)
            codes.append(grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
        watch = health.Watch(request, metadata=metadata)
        seen.append((await watch.read()).status)
        watch.cancel()

    good, bad = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    is_there = name != "nobody"
    found = grpc.StatusCode.OK if is_there else grpc.StatusCode.NOT_FOUND
    assert codes == [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND, found]
    assert seen == [bad, bad, good if is_there else bad]


async def test_the_index_shows_a_key_its_models(channel: grpc.aio.Channel) -> None:
    """And no other."""
    stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated

    index = await stub.RepositoryIndex(
        pb.RepositoryIndexRequest(), metadata=(("authorization", f"Bearer {ALIAS_KEY}"),)
    )

    assert [model.name for model in index.models] == ["uno"]


async def test_operators_alone_unload(channel: grpc.aio.Channel) -> None:
    """A key without `admin` is denied."""
    refused = await _code(channel, "RepositoryModelUnload", ("authorization", f"Bearer {FULL_KEY}"), model_name="one")
    known = await _code(channel, "RepositoryModelLoad", ("authorization", f"Bearer {ADMIN_KEY}"), model_name="one")

    assert (refused, known) == (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.OK)


async def test_a_keys_limits_hold_over_grpc() -> None:
    """Its requests are on its account, and under its name in the log."""
    limited = KeyConfig(name="limited", value=FULL_KEY, limits=KeyLimitsConfig(requests_per_minute=1))
    async with _channel(limited) as channel:
        metadata = ("authorization", f"Bearer {FULL_KEY}")
        tensor = pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"hi")
        with capture_logs() as logged:
            codes = [await _code(channel, "ModelInfer", metadata, model_name="one", inputs=[tensor]) for _ in range(2)]

    assert codes[0] is not codes[1] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [each["key"] for each in logged if each["event"] == "request.ended"] == ["limited"] * 2


async def test_reflection_wants_a_key(channel: grpc.aio.Channel) -> None:
    """What can be asked is told to those who may ask."""
    stub: Any = ServerReflectionStub(channel)  # type: ignore[arg-type]  # typed for the other kind of channel
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    metadata = (("authorization", f"Bearer {ALIAS_KEY}"),)
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]), metadata=metadata)]

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "inference.GRPCInferenceService" in str(answers)


async def test_an_id_that_metadata_cannot_hold_is_replaced(channel: grpc.aio.Channel) -> None:
    """A client's id comes back as it was, and one of ours in the place of one that is too long."""
    stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    ids = []
    for asked in ("mine", "a" * 300):
        call = stub.ServerLive(pb.ServerLiveRequest(), metadata=(("x-request-id", asked),))
        ids.append(dict(await call.initial_metadata())["x-request-id"])

    assert ids[0] == "mine"
    assert len(ids[1]) == 32
