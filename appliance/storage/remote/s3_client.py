"""
A client for S3 and what speaks like it, set up through s3fs as AWS's own tools, and KServe's, would be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from appliance.storage.credentials import S3Credentials, value_of
from appliance.storage.remote import answers
from appliance.storage.remote.answers import Access
from appliance.storage.section import TransferSection

_REGION = "us-east-1"
REMEDY = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or storage.credentials.s3 to who may read it"


@dataclass(frozen=True, slots=True)
class S3Client:
    """
    An open client and as whom it asks.
    """

    client: Any  # Any: aiobotocore makes its clients at run time, from tables
    access: Access


async def open_client(block: S3Credentials, transfer: TransferSection, stack: AsyncExitStack) -> S3Client:
    """
    The client of an s3fs filesystem, which `stack` closes.
    """
    from aiobotocore.session import AioSession  # type: ignore[import-untyped] # has no types
    from s3fs import S3FileSystem  # type: ignore[import-untyped] # has no types

    # Not the filesystem's own: it would not say which credentials it finds, nor ask as nobody where there are none.
    session = AioSession(profile=block.profile)
    credential, keys = await _keys(session, block)
    region = block.region or session.get_config_variable("region") or _REGION
    # None leaves it to botocore, which reads AWS_CA_BUNDLE.
    verify = None if _is_true(os.environ.get("S3_VERIFY_SSL", "1")) else False
    files = S3FileSystem(
        asynchronous=True,
        skip_instance_cache=True,
        session=session,
        endpoint_url=block.endpoint_url or _kserve_endpoint(os.environ),
        client_kwargs={"region_name": region, "verify": verify},
        config_kwargs=_config(transfer),
        # Each is given, even as None, so that none comes from fsspec's own config.
        **{"use_ssl": True, "anon": False, "key": None, "secret": None, "token": None, **keys},
    )
    client = await files.set_session()
    stack.push_async_exit(client)
    return S3Client(client, Access(credential, REMEDY))


def _config(transfer: TransferSection) -> dict[str, object]:
    connect, silence = answers.patience(transfer)
    return {
        "connect_timeout": connect,
        "read_timeout": silence,
        "max_pool_connections": max(64, transfer.parallel),
        # The transfer tries again, not each of its requests.
        "retries": {"total_max_attempts": 1},
        # Some stores send the checksum of the whole object with a part of it.
        "response_checksum_validation": "when_required",
        "request_checksum_calculation": "when_required",
        "s3": _addressing(os.environ),
    }


async def _keys(session: Any, block: S3Credentials) -> tuple[str, dict[str, Any]]:  # Any: as above
    """
    Which credential there is, in words, and as arguments.
    """
    # KServe's own spelling.
    by_variable = _is_true(os.environ.get("awsAnonymousCredential", ""))  # noqa: SIM112
    if block.anonymous or (by_variable and not block.access_key_id and not block.profile):
        return "anonymous", {"anon": True}
    if block.access_key_id:
        return "access_key_id of storage.credentials.s3", {
            "key": value_of(block.access_key_id),
            "secret": value_of(block.secret_access_key),
            "token": value_of(block.session_token),
        }
    found = await session.get_credentials()
    if found is None:
        return "anonymous, as no AWS credentials are set up", {"anon": True}
    return f"AWS credentials ({found.method})", {}


def _kserve_endpoint(environ: Mapping[str, str]) -> str | None:
    """
    The endpoint that KServe's variables name, unless one of AWS's own does, which botocore reads itself.
    """
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
