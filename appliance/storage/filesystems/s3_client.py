"""A client for S3 and what speaks like it, set up as AWS's own tools, and KServe's, would be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.config.credentials import S3Credentials, value_of
from appliance.config.storage import TransferConfig
from appliance.storage.filesystems import http_errors
from appliance.storage.filesystems.http_errors import AccessHint

_REGION = "us-east-1"
REMEDY = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or storage.credentials.s3 to who may read it"


@dataclass(frozen=True, slots=True)
class S3Client:
    """An open client, which many threads may use, and as whom it asks."""

    client: Any  # Any: botocore makes its clients at run time, from tables
    access: AccessHint


def open_client(block: S3Credentials, transfer: TransferConfig) -> S3Client:
    """A client with the keys that a block has, or that AWS's own tools would find."""
    from botocore.session import Session  # type: ignore[import-untyped] # has no types

    session = Session(profile=block.profile)
    credential, keys = _keys(session, block)
    client = session.create_client(
        "s3",
        region_name=block.region or session.get_config_variable("region") or _REGION,
        endpoint_url=block.endpoint_url or _kserve_endpoint(os.environ),
        # None leaves it to botocore, which reads AWS_CA_BUNDLE.
        verify=None if _is_true(os.environ.get("S3_VERIFY_SSL", "1")) else False,
        config=_config(transfer, is_signed=keys is not None),
        **(keys or {}),
    )
    client.meta.events.register_first("before-parse.s3", _require_frame)
    return S3Client(client, AccessHint(credential, REMEDY))


def _require_frame(response_dict: Mapping[str, Any], **_: object) -> None:  # Any: botocore's
    from botocore.exceptions import ConnectionClosedError  # type: ignore[import-untyped] # has no types

    status, headers = response_dict["status_code"], response_dict["headers"]
    if status < 300 and not http_errors.is_framed(status, headers):
        raise ConnectionClosedError(endpoint_url="the store")


def _config(transfer: TransferConfig, *, is_signed: bool) -> Any:  # Any: as above
    from botocore import UNSIGNED  # type: ignore[import-untyped] # as above
    from botocore.config import Config  # type: ignore[import-untyped] # as above

    connect, silence = http_errors.patience(transfer)
    return Config(
        connect_timeout=connect,
        read_timeout=silence,
        max_pool_connections=max(64, transfer.parallel),
        # The transfer tries again, not each of its requests.
        retries={"total_max_attempts": 1},
        # Some stores send the checksum of the whole object with a part of it.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
        s3=_addressing(os.environ),
        signature_version=None if is_signed else UNSIGNED,
    )


def _keys(session: Any, block: S3Credentials) -> tuple[str, dict[str, str | None] | None]:  # Any: as above
    """
    Which credential there is, in words, and the keys to use in place of what the session finds; None signs nothing.
    """
    # KServe's own spelling.
    by_variable = _is_true(os.environ.get("awsAnonymousCredential", ""))  # noqa: SIM112
    if block.anonymous or (by_variable and not block.access_key_id and not block.profile):
        return "anonymous", None
    if block.access_key_id:
        return "access_key_id of storage.credentials.s3", {
            "aws_access_key_id": value_of(block.access_key_id),
            "aws_secret_access_key": value_of(block.secret_access_key),
            "aws_session_token": value_of(block.session_token),
        }
    found = session.get_credentials()
    if found is None:
        return "anonymous, as no AWS credentials are set up", None
    return f"AWS credentials ({found.method})", {}


def _kserve_endpoint(environ: Mapping[str, str]) -> str | None:
    """The endpoint that KServe's variables name, unless one of AWS's own does, which botocore reads itself."""
    endpoint = environ.get("S3_ENDPOINT")
    if not endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"):
        return None
    if "://" in endpoint:
        return endpoint
    return f"{'https' if _is_true(environ.get('S3_USE_HTTPS', '1')) else 'http'}://{endpoint}"


def _addressing(environ: Mapping[str, str]) -> dict[str, object]:
    # KServe's own spelling.
    virtual = _is_true(environ.get("S3_USER_VIRTUAL_BUCKET", ""))
    accelerate = _is_true(environ.get("S3_USE_ACCELERATE", ""))
    return {**({"addressing_style": "virtual"} if virtual else {}), "use_accelerate_endpoint": accelerate}


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")
