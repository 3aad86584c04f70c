"""
The listener for gRPC, beside the one for HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from appliance.config import Config
from appliance.errors import ApplianceError
from appliance.lifecycle import Lifecycle, Standing
from appliance.protocols.oip_grpc import inference_pb2_grpc
from appliance.protocols.oip_grpc.guard import Guard
from appliance.protocols.oip_grpc.health import SERVICE, Health
from appliance.protocols.oip_grpc.service import InferenceService


def create_server(
    config: Config, lifecycle: Lifecycle, standing: Callable[[], Standing], *, has_company: bool = False
) -> tuple[grpc.aio.Server, int]:
    """
    A server on `server.grpc_port` that has not started, and its port; `has_company` where other workers listen there.

    Raises:
        ApplianceError: somebody else has the port.
    """
    server = grpc.aio.server(
        interceptors=[Guard()],
        options=[
            ("grpc.max_receive_message_length", config.server.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(has_company)),
        ],
    )
    add = inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
    add(InferenceService(lifecycle, standing), server)  # type: ignore[no-untyped-call]  # generated
    health_pb2_grpc.add_HealthServicer_to_server(Health(lifecycle, standing), server)
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((SERVICE, health, reflection.SERVICE_NAME), server)
    return server, _listen(server, config.server.host, config.server.grpc_port or 0)


def _listen(server: grpc.aio.Server, host: str, port: int) -> int:
    try:
        return server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise ApplianceError(f"cannot listen on {host} port {port}; choose another server.grpc_port") from error
