"""The protocol over gRPC: tensors raw and typed, status codes, health, reflection."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from inference_doubles import InferenceClient, operation_doubles
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from appliance.api.grpc.server import create_server
from appliance.config.server import ServerConfig
from appliance.config.telemetry import LoggingConfig, PayloadLogConfig
from appliance.core.errors import EngineDeadError, RequestError, UnavailableError
from appliance.telemetry.recorder import RequestRecorder
from appliance.tensors.grpc import inference_pb2 as pb
from appliance.tensors.grpc.inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.tensors.tensor import Tensor

ROOT = Path(__file__).parent.parent.parent
SERVER = ServerConfig(host="127.0.0.1", max_body_bytes=4096)
QUIET = LoggingConfig()


class Remote:
    """A client of gRPC, and the application behind the server it talks to."""

    def __init__(self, inner: InferenceClient, channel: grpc.aio.Channel) -> None:
        self.inner = inner
        self.call: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self.health: Any = HealthStub(channel)
        self.reflection: Any = ServerReflectionStub(channel)  # type: ignore[arg-type]  # typed for the other kind of channel


@asynccontextmanager
async def _remote(server_section: ServerConfig = SERVER, logging: LoggingConfig = QUIET) -> AsyncGenerator[Remote]:
    config = operation_doubles(server=server_section, logging=logging)
    async with InferenceClient(config) as inner:
        await inner.wait_until_ready()
        telemetry = RequestRecorder(config)
        server, port = create_server(config, inner.manager, inner.manager.health, telemetry)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Remote(inner, channel)
        await server.stop(None)
        await telemetry.stop()
        await inner.manager.stop()


@pytest.fixture(scope="module")
async def remote() -> AsyncGenerator[Remote]:
    """One for all tests that break nothing."""
    async with _remote() as remote:
        yield remote


@pytest.fixture
async def fresh_remote() -> AsyncGenerator[Remote]:
    """One whose models a test may break."""
    async with _remote() as remote:
        yield remote


def _request(model: str, *tensors: Tensor, **more: Any) -> pb.ModelInferRequest:
    inputs = [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in tensors]
    raw = [each.raw for each in tensors]
    return pb.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=raw, **more)


def _text(*texts: str) -> Tensor:
    return Tensor.of_values("text_input", "BYTES", (len(texts),), texts)


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


def test_the_messages_are_those_of_the_proto(tmp_path: Path) -> None:
    """Generated anew, they are what is committed; if not: just protos."""
    folder = "appliance/tensors/grpc"
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]

    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outs, f"{folder}/inference.proto"], cwd=ROOT, check=True
    )
    made = sorted((tmp_path / folder).iterdir())

    assert len(made) == 3
    assert [(ROOT / folder / file.name).read_text() == file.read_text() for file in made] == [True] * 3


async def test_metadata_of_server_and_models(remote: Remote) -> None:
    """The same as over REST."""
    server = await remote.call.ServerMetadata(pb.ServerMetadataRequest())
    model = await remote.call.ModelMetadata(pb.ModelMetadataRequest(name="embedder", version="1"))
    config = (await remote.call.ModelConfig(pb.ModelConfigRequest(name="embedder"))).config
    index = await remote.call.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))

    assert server.name == "appliance"
    assert [(each.name, each.datatype, [*each.shape]) for each in model.outputs] == [("embedding", "FP32", [-1, 3])]
    assert config.input[0].data_type == pb.TYPE_STRING
    assert [*config.output[0].dims] == [-1, 3]
    assert {each.state for each in index.models} == {"READY"}


async def test_request_is_logged_and_counted(remote: Remote) -> None:
    """
    Counted by its protocol, and logged with gRPC's word for how it ended beside HTTP's number; a probe is not told of.
    """
    labels = {"protocol": "oip_grpc", "operation": "classification", "model": "mood", "code": "2xx"}
    before = REGISTRY.get_sample_value("appliance_requests_total", labels) or 0

    with capture_logs() as logged:
        await remote.call.ModelInfer(_request("mood", _text("HEY")), metadata=[("x-request-id", "mine")])
        await remote.call.ServerReady(pb.ServerReadyRequest())
        await _code(remote.call.ModelInfer(_request("nobody", _text("HEY"))))
        # An error reaches the client before it is logged.
        async with asyncio.timeout(10):
            while len(ended := [each for each in logged if each["event"] == "request.ended"]) < 2:
                await asyncio.sleep(0.01)

    good, bad = ended
    assert (good["status"], good["grpc_status"], good["model"]) == (200, "OK", "mood")
    assert (bad["status"], bad["grpc_status"], bad["error"]) == (404, "NOT_FOUND", "UnknownModelError")
    assert REGISTRY.get_sample_value("appliance_requests_total", labels) == before + 1


async def test_both_messages_go_to_the_payload_log(tmp_path: Path) -> None:
    """As they are on the wire, joined by the request's id; what asks no model is left out."""
    sink = tmp_path / "payloads"
    request = _request("mood", _text("HEY"))
    async with _remote(logging=LoggingConfig(payloads=PayloadLogConfig(sink=str(sink)))) as remote:
        answer = await remote.call.ModelInfer(request, metadata=[("x-request-id", "mine")])
        await remote.call.ServerReady(pb.ServerReadyRequest())
        await _code(remote.call.ModelInfer(_request("mood", Tensor.of_values("text_input", "FP32", (1,), [1]))))

    events = [json.loads(line) for line in sink.read_text().splitlines()]
    asked, answered = (base64.b64decode(each["data_base64"]) for each in events)
    assert pb.ModelInferRequest.FromString(asked) == request
    assert pb.ModelInferResponse.FromString(answered) == answer
    assert {(each["id"], each["model"], each["status"]) for each in events} == {("mine", "mood", 200)}
    assert {each["datacontenttype"] for each in events} == {"application/protobuf"}


async def test_response_to_raw_tensors_is_raw(remote: Remote) -> None:
    """With the id, and the outputs the client wants in its order."""
    wanted = [{"name": "probabilities"}, {"name": "label"}]

    answer = await remote.call.ModelInfer(_request("mood", _text("HEY"), id="7", outputs=wanted))

    assert (answer.model_name, answer.model_version, answer.id) == ("mood", "1", "7")
    assert [each.name for each in answer.outputs] == ["probabilities", "label"]
    assert answer.raw_output_contents[1] == b"\x04\x00\x00\x00loud"
    assert not answer.outputs[0].HasField("contents")


TYPED = [
    ("BOOL", "bool_contents", [True, False], [True, False]),
    ("INT8", "int_contents", [-3, 4], [-6, 8]),
    ("INT16", "int_contents", [-3, 4], [-6, 8]),
    ("INT32", "int_contents", [-3, 4], [-6, 8]),
    ("INT64", "int64_contents", [-3, 2**40], [-6, 2**41]),
    ("UINT8", "uint_contents", [3, 4], [6, 8]),
    ("UINT16", "uint_contents", [3, 4], [6, 8]),
    ("UINT32", "uint_contents", [3, 4], [6, 8]),
    ("UINT64", "uint64_contents", [3, 2**62], [6, 2**63]),
    ("FP32", "fp32_contents", [0.5, -2.0], [1.0, -4.0]),
    ("FP64", "fp64_contents", [0.1, -2.0], [0.2, -4.0]),
    ("BYTES", "bytes_contents", [b"a", b"b"], [b"A", b"B"]),
]


@pytest.mark.parametrize(("datatype", "field", "values", "twice"), TYPED, ids=[row[0] for row in TYPED])
async def test_response_to_typed_tensors_is_typed(
    remote: Remote, datatype: str, field: str, values: list[Any], twice: list[Any]
) -> None:
    """Each datatype in its own field."""
    tensor = {"name": "in", "datatype": datatype, "shape": [2], "contents": {field: values}}

    answer = await remote.call.ModelInfer(pb.ModelInferRequest(model_name="echo", inputs=[tensor]))

    assert list(getattr(answer.outputs[0].contents, field)) == twice
    assert not answer.raw_output_contents


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_16_bit_floats_are_raw(remote: Remote, datatype: str) -> None:
    """There is no field for them."""
    tensor = Tensor.of_values("in", datatype, (2,), [1.5, -2.0])

    answer = await remote.call.ModelInfer(_request("echo", tensor))

    assert Tensor.of_raw("out", datatype, (2,), answer.raw_output_contents[0]).values() == [3.0, -4.0]


async def test_parameters_of_any_type_are_fields_of_the_request(remote: Remote) -> None:
    """Texts, whole numbers, floats and truths."""
    said: dict[str, Any] = {
        "max_tokens": {"int64_param": 3},
        "temperature": {"double_param": 0.5},
        "seed": {"uint64_param": 7},
        "user": {"string_param": "x"},
        "ignore_eos": {"bool_param": True},
    }

    await remote.call.ModelInfer(_request("writer", _text("a"), parameters=said))
    body = remote.inner.model("writer").calls[-1].body

    assert b'"max_tokens":3,' in body
    assert b'"temperature":0.5,' in body
    assert b'"ignore_eos":true' in body


WRONG: dict[str, pb.ModelInferRequest] = {
    "short": pb.ModelInferRequest(
        model_name="echo", inputs=[{"name": "in", "datatype": "INT32", "shape": [2]}], raw_input_contents=[b"1234"]
    ),
    "huge": pb.ModelInferRequest(
        model_name="echo", inputs=[{"name": "in", "datatype": "INT32", "shape": [2**62, 8]}], raw_input_contents=[b""]
    ),
    "negative": pb.ModelInferRequest(
        model_name="echo", inputs=[{"name": "in", "datatype": "INT32", "shape": [-1]}], raw_input_contents=[b"1234"]
    ),
    "no datatype": pb.ModelInferRequest(model_name="echo", inputs=[{"name": "in", "datatype": "INT", "shape": [0]}]),
    "other field": pb.ModelInferRequest(
        model_name="echo",
        inputs=[{"name": "in", "datatype": "INT32", "shape": [1], "contents": {"fp32_contents": [1]}}],
    ),
    "out of range": pb.ModelInferRequest(
        model_name="echo",
        inputs=[{"name": "in", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [300]}}],
    ),
    "typed FP16": pb.ModelInferRequest(
        model_name="echo",
        inputs=[{"name": "in", "datatype": "FP16", "shape": [1], "contents": {"fp32_contents": [1]}}],
    ),
    "raw and typed": pb.ModelInferRequest(
        model_name="echo",
        inputs=[{"name": "in", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [1]}}],
        raw_input_contents=[b"1"],
    ),
    "fewer raw": pb.ModelInferRequest(
        model_name="echo",
        inputs=[{"name": name, "datatype": "INT8", "shape": [1]} for name in ("a", "b")],
        raw_input_contents=[b"1"],
    ),
    "no such output": pb.ModelInferRequest(model_name="writer", inputs=[], outputs=[{"name": "nothing"}]),
    "no text": _request("writer", Tensor.of_values("text_input", "BYTES", (1,), [b"\xff"])),
    "explained by nobody": _request("plain", _text("a")),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_request_is_an_invalid_argument(remote: Remote, name: str) -> None:
    """Never an internal error."""
    assert await _code(remote.call.ModelInfer(WRONG[name])) is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_model_or_version_is_not_found(remote: Remote) -> None:
    """Models and versions alike."""
    for call in (
        remote.call.ModelInfer(_request("nobody", _text("a"))),
        remote.call.ModelInfer(_request("writer", _text("a"), model_version="2")),
        remote.call.ModelReady(pb.ModelReadyRequest(name="nobody")),
        remote.call.ModelMetadata(pb.ModelMetadataRequest(name="writer", version="2")),
        remote.call.ModelStatistics(pb.ModelStatisticsRequest(name="nobody")),
        remote.health.Check(health_pb2.HealthCheckRequest(service="nobody")),
    ):
        assert await _code(call) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (UnavailableError("loading", retry_after=3), grpc.StatusCode.UNAVAILABLE),
        (EngineDeadError("dead"), grpc.StatusCode.UNAVAILABLE),
        (RequestError("too many", status=429), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (RequestError("no entry", status=401), grpc.StatusCode.UNAUTHENTICATED),
        (RequestError("never seen", status=418), grpc.StatusCode.INVALID_ARGUMENT),
        (RuntimeError("secret detail"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_each_error_has_its_code(fresh_remote: Remote, fault: Exception, code: grpc.StatusCode) -> None:
    """With its text, but for what nobody foresaw; a wait worth trying is in the trailing metadata."""
    fresh_remote.inner.model("writer").answer_fault = fault

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await fresh_remote.call.ModelInfer(_request("writer", _text("a")))

    assert raised.value.code() is code
    assert "secret" not in (raised.value.details() or "")
    if isinstance(fault, UnavailableError):
        assert ("retry-after", "3") in [*raised.value.trailing_metadata()]


async def test_message_size_is_limited_like_a_body(remote: Remote) -> None:
    """Neither as it is, nor once it is decompressed."""
    large = _request("writer", _text("a" * 5000))

    assert await _code(remote.call.ModelInfer(large)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    packed = remote.call.ModelInfer(large, compression=grpc.Compression.Gzip)
    assert await _code(packed) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_client_cancellation_cancels_the_request(fresh_remote: Remote) -> None:
    """What it asked for is not computed to its end."""
    call = fresh_remote.call.ModelInfer(_request("writer", _text("wait")))
    entry = fresh_remote.inner.manager.find("writer")
    await fresh_remote.inner.wait_until(lambda: entry.running == 1)

    call.cancel()

    await fresh_remote.inner.wait_until(lambda: entry.running == 0)
    assert entry.requests.failed == 1


async def test_the_request_id_is_echoed(remote: Remote) -> None:
    """As over REST; one that would fill the log is not."""
    calls = [
        remote.call.ServerLive(pb.ServerLiveRequest(), metadata=(("x-request-id", sent),))
        for sent in ("abc", "a" * 200)
    ]
    ids = [dict(await call.initial_metadata())["x-request-id"] for call in calls]

    assert ids[0] == "abc"
    assert len(ids[1]) == 32


async def test_statistics_count_calls_of_either_protocol(fresh_remote: Remote) -> None:
    """They are the model's."""
    await fresh_remote.call.ModelInfer(_request("writer", _text("a")))
    await fresh_remote.inner.post("/v1/completions", json={"model": "writer", "prompt": "a"})

    told = await fresh_remote.call.ModelStatistics(pb.ModelStatisticsRequest(name="writer"))
    all_ = await fresh_remote.call.ModelStatistics(pb.ModelStatisticsRequest())

    assert told.model_stats[0].inference_stats.success.count == 2
    assert len(all_.model_stats) == len(fresh_remote.inner.manager.statuses)


async def test_admin_unloads_and_loads_if_the_config_allows_it(remote: Remote) -> None:
    """With the codes of what is forbidden, and of what cannot be done now."""
    load, unload = pb.RepositoryModelLoadRequest(model_name="mood"), pb.RepositoryModelUnloadRequest(model_name="mood")
    async with _remote(SERVER.model_copy(update={"admin": True})) as allowed:
        await allowed.call.RepositoryModelUnload(unload)
        asked = await _code(allowed.call.ModelInfer(_request("mood", _text("a"))))
        again = await _code(allowed.call.RepositoryModelUnload(unload))
        await allowed.call.RepositoryModelLoad(load)
        ready = await allowed.call.ModelReady(pb.ModelReadyRequest(name="mood"))

    assert (asked, again) == (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
    assert ready.ready
    assert await _code(remote.call.RepositoryModelUnload(unload)) is grpc.StatusCode.PERMISSION_DENIED


async def test_health_follows_readiness(fresh_remote: Remote) -> None:
    """For the server, its service and each model; a watcher hears of the change, and liveness goes on."""
    watch = fresh_remote.health.Watch(health_pb2.HealthCheckRequest(service="mood"))
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    first = await watch.read()
    fresh_remote.inner.model("mood").is_away = True
    second = await asyncio.wait_for(watch.read(), 10)
    watch.cancel()

    services = ("", "inference.GRPCInferenceService", "readiness", "mood", "writer", "liveness")
    checks = [fresh_remote.health.Check(health_pb2.HealthCheckRequest(service=service)) for service in services]
    ready = await fresh_remote.call.ServerReady(pb.ServerReadyRequest())
    mood = await fresh_remote.call.ModelReady(pb.ModelReadyRequest(name="mood"))

    assert (first.status, second.status) == (serving, not_serving)
    assert [(await check).status for check in checks] == [not_serving] * 4 + [serving] * 2
    assert (ready.ready, mood.ready) == (False, False)


async def test_watch_of_an_unknown_service_reports_it(remote: Remote) -> None:
    """As gRPC wants it: no error, for it may come to be."""
    watch = remote.health.Watch(health_pb2.HealthCheckRequest(service="nobody"))

    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_reflection_lists_services_and_messages(remote: Remote) -> None:
    """So that a tool like grpcurl needs no .proto."""
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
    ]

    listed, file = [each async for each in remote.reflection.ServerReflectionInfo(iter(asked))]

    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert b"ModelInferRequest" in file.file_descriptor_response.file_descriptor_proto[0]
