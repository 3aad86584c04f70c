"""The gRPC server of the Open Inference Protocol."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from appliance.api.grpc.interceptor import GrpcInterceptor
from appliance.api.grpc.service import SERVICE, HealthService, InferenceService
from appliance.api.probes import Health
from appliance.auth.certificates import Certificate, Certificates
from appliance.config import Config
from appliance.core.errors import ApplianceError
from appliance.models.manager import ModelManager
from appliance.telemetry.recorder import RequestRecorder
from appliance.tensors.grpc import inference_pb2_grpc


def create_server(
    config: Config,
    manager: ModelManager,
    health: Health,
    telemetry: RequestRecorder,
    *,
    shares_port: bool = False,
    certificates: Certificates | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Return a server that is not started, and its port.

    `shares_port`: other workers listen on the same port. Connections use TLS if there are `certificates`.

    Raises:
        ApplianceError: the port is in use.
    """
    server = grpc.aio.server(
        interceptors=[GrpcInterceptor(manager.authorizer, telemetry)],
        options=[
            ("grpc.max_receive_message_length", config.server.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(shares_port)),
        ],
    )
    add = inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
    add(InferenceService(manager, health), server)  # type: ignore[no-untyped-call]  # generated
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(manager, health), server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((SERVICE, health_name, reflection.SERVICE_NAME), server)
    host, port = config.server.host, config.server.grpc_port or 0
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificates is None:
            return server, server.add_insecure_port(address)
        return server, server.add_secure_port(address, _credentials(certificates))
    except RuntimeError as error:
        raise ApplianceError(f"cannot listen on {host} port {port}; choose another server.grpc_port") from error


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return credentials whose certificate gRPC fetches again for each connection."""
    shown: Certificate | None = None

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        # None means that nothing changed.
        if certificates.current is shown:
            return None
        shown = certificates.current
        pairs = [(shown.key, shown.chain)]
        return grpc.ssl_server_certificate_configuration(pairs, root_certificates=shown.client_ca)

    return grpc.dynamic_ssl_server_credentials(
        fetch(),  # type: ignore[arg-type]  # the first time it is a certificate
        fetch,  # type: ignore[arg-type]  # None, as above
        require_client_authentication=certificates.current.client_ca is not None,
    )
