"""Where a transformer sends its requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor of a transformer; `predictor_host` is HOST or HOST:PORT, without a scheme."""

    predictor_host: str | None
    predictor_protocol: str = "v1"
    """`v1`, `v2` or `grpc-v2`."""
    predictor_use_ssl: bool = False
    predictor_request_timeout_seconds: int = 600
    predictor_request_retries: int = 0
    predictor_health_check: bool = False
    """Whether the transformer is ready only while its predictor is."""

    @property
    def predictor_base_url(self) -> str:
        """The base URL of the predictor."""
        return f"{'https' if self.predictor_use_ssl else 'http'}://{self.predictor_host}"

    @property
    def protocol(self) -> str:
        """`predictor_protocol`."""
        return self.predictor_protocol

    @property
    def timeout(self) -> int:
        """`predictor_request_timeout_seconds`."""
        return self.predictor_request_timeout_seconds

    @property
    def retries(self) -> int:
        """`predictor_request_retries`."""
        return self.predictor_request_retries

    @property
    def use_ssl(self) -> bool:
        """`predictor_use_ssl`."""
        return self.predictor_use_ssl
