"""KServe's constants of servers and clients."""

from __future__ import annotations

import os
from enum import Enum

from appliance.tensors.codec import LENGTH_HEADER

__all__ = [
    "DEFAULT_GRPC_PORT",
    "DEFAULT_HTTPS_PORT",
    "DEFAULT_HTTP_PORT",
    "INFERENCE_CONTENT_LENGTH_HEADER",
    "KSERVE_LOGLEVEL",
    "KSERVE_TLS_CERT_FILE_ENV",
    "KSERVE_TLS_KEY_FILE_ENV",
    "MAX_GRPC_MESSAGE_LENGTH",
    "V1_ROUTE_PREFIX",
    "V2_ROUTE_PREFIX",
    "PredictorProtocol",
]

KSERVE_LOGLEVEL = os.environ.get("KSERVE_LOGLEVEL", "INFO").upper()

DEFAULT_HTTP_PORT = 8080
DEFAULT_HTTPS_PORT = 8443
DEFAULT_GRPC_PORT = 8081
MAX_GRPC_MESSAGE_LENGTH = 8 * 1024 * 1024

KSERVE_TLS_CERT_FILE_ENV = "KSERVE_TLS_CERT_FILE"
KSERVE_TLS_KEY_FILE_ENV = "KSERVE_TLS_KEY_FILE"
"""Variables with the server's certificate and key."""

V1_ROUTE_PREFIX = "/v1"
V2_ROUTE_PREFIX = "/v2"

INFERENCE_CONTENT_LENGTH_HEADER = LENGTH_HEADER


class PredictorProtocol(Enum):
    """How a transformer sends requests to its predictor."""

    REST_V1 = "v1"
    REST_V2 = "v2"
    GRPC_V2 = "grpc-v2"
