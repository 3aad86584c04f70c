"""`s3://BUCKET/PREFIX`: Amazon S3, and every store with its protocol.

botocore in threads, and not s3fs, which lists without checksums, replaces the store's error code by an errno, retries
on its own, and receives everything on one processor.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from appliance.config.credentials import S3CredentialsConfig, block_for, value_of
from appliance.config.storage import GlobalStorageConfig, TransferConfig
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactNotFoundError,
    MissingExtraError,
    StorageError,
    StorageUnavailableError,
)
from appliance.core.threads import in_thread, opened_in_thread
from appliance.storage.filesystems import http_errors
from appliance.storage.filesystems.base import Body, RemoteFile
from appliance.storage.filesystems.http_client import ExactBody, ResponseBody
from appliance.storage.filesystems.http_errors import AccessHint
from appliance.storage.filesystems.object_store import (
    ObjectLocation,
    ObjectStore,
    gather,
    hex_digest,
    known_digests,
    md5_of_etag,
)

_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._:-]+"
_DEFAULT_REGION = "us-east-1"
_REMEDY = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or storage.credentials.s3 to valid credentials"

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html: codes whose status alone would mislead.
_CREDENTIAL_CODES = frozenset(
    {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)
_TEMPORARY_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Busy"})


class S3Store(ObjectStore):
    """A prefix of a bucket, or one object."""

    def __init__(self, uri: str, settings: GlobalStorageConfig) -> None:
        if importlib.util.find_spec("botocore") is None:
            raise MissingExtraError("botocore", "s3", "Fetching s3://")
        location = ObjectLocation.parse(uri, _BUCKET)
        super().__init__(f"s3://{location}", location)
        self._settings = settings
        self._block = block_for(settings.credentials.s3, "bucket", location.bucket) or S3CredentialsConfig()
        self._opening = asyncio.Lock()
        self._opened: Any = None  # Any: botocore creates its clients at run time, from tables
        self.credential = "AWS credentials"

    @asynccontextmanager
    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[Body]:
        client = await self._client()
        async with opened_in_thread(self._open, client, file, start, end) as body:
            yield ExactBody(self._resource(file), body, end - start)

    async def close(self) -> None:
        if self._opened:
            await in_thread(self._opened.close)

    async def _client(self) -> Any:  # Any: as above
        async with self._opening:
            if self._opened is None:
                with self._translate_errors(self._uri):
                    opened = await in_thread(_open_client, self._block, self._settings.transfer)
                    self.credential, self._opened = opened
            return self._opened

    def _open(self, client: Any, file: RemoteFile, start: int, end: int) -> ResponseBody:  # Any: as above
        resource, condition = self._resource(file), {"IfMatch": file.version} if file.version else {}
        with self._translate_errors(resource):
            response = client.get_object(
                Bucket=self._location.bucket, Key=self._key_of(file), Range=f"bytes={start}-{end - 1}", **condition
            )
        # botocore's wrapper returns a block only when it is full, and cannot be interrupted.
        body = ResponseBody(resource, response["Body"]._raw_stream)
        try:
            http_errors.check_content_range(resource, response.get("ContentRange"), file.size, start, end)
        except StorageError:
            body.close()
            raise
        return body

    async def _list_prefix(self) -> Sequence[RemoteFile]:
        client, location = await self._client(), self._location
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.prefix)
        with self._translate_errors(self._uri):
            found = await in_thread(
                lambda: [(entry["Key"], entry["Size"]) for page in pages for entry in page.get("Contents", ())]
            )
        named = [(key, name, size) for key, size in found if (name := location.name_of(key))]
        return await gather(lambda row: self._describe(client, *row), named)

    async def _describe_object(self) -> RemoteFile:
        return await self._describe(await self._client(), self._location.path, self._location.name)

    async def _describe(self, client: Any, key: str, name: str, listed: int | None = None) -> RemoteFile:  # Any: above
        """Send a HEAD request, because a listing has no checksums, and does not say whether an ETag is an MD5."""
        if listed == 0:
            return RemoteFile(name, 0)
        with self._translate_errors(f"{self._uri}: {name}"):
            head = await in_thread(client.head_object, Bucket=self._location.bucket, Key=key, ChecksumMode="ENABLED")
        return RemoteFile(name, head["ContentLength"], head.get("ETag") or None, _digests(head))

    @contextmanager
    def _translate_errors(self, resource: str) -> Iterator[None]:
        from botocore import exceptions as boto  # type: ignore[import-untyped] # has no types

        try:
            yield
        except boto.ClientError as error:
            raise self._client_error(resource, error) from error
        except boto.SSLError as error:
            raise http_errors.connection_error(resource, error.__context__ or error) from error
        except (
            boto.NoCredentialsError,
            boto.PartialCredentialsError,
            boto.CredentialRetrievalError,
            boto.ProfileNotFound,
            boto.TokenRetrievalError,
            boto.SSOError,
        ) as error:
            raise AccessDeniedError(f"{resource}: {http_errors.clean(str(error))}; {_REMEDY}") from error
        except (
            boto.ConnectionError,
            boto.HTTPClientError,
            boto.IncompleteReadError,
            boto.ResponseStreamingError,
        ) as error:
            raise http_errors.connection_error(resource, error) from error
        except (boto.BotoCoreError, ValueError) as error:
            message = http_errors.clean(str(error))
            raise StorageError(f"{resource}: {message}; check the URI and storage.credentials.s3") from error
        except OSError as error:
            raise http_errors.connection_error(resource, error) from error

    def _client_error(self, resource: str, error: Exception) -> StorageError:
        response = getattr(error, "response", {})
        code = str(response.get("Error", {}).get("Code", ""))
        metadata = response.get("ResponseMetadata", {})
        status = int(metadata.get("HTTPStatusCode", 0))
        if code == "NoSuchBucket":
            bucket = self._location.bucket
            return ArtifactNotFoundError(f"{resource}: there is no bucket {bucket!r}; check its name and the endpoint")
        if code == "InvalidObjectState":
            return StorageError(f"{resource}: is in an archive storage class; restore it first")
        if code in _CREDENTIAL_CODES:
            return AccessDeniedError(f"{resource}: the store rejects {self.credential} ({code}); {_REMEDY}")
        if code in _TEMPORARY_CODES:
            return StorageUnavailableError(f"{resource}: the store responds {code}; try again later")
        wait = http_errors.retry_after(metadata.get("HTTPHeaders", {}).get("retry-after"))
        # A response to HEAD has no body, so its code is its status.
        message = "" if code.isdigit() else code
        hint = AccessHint(self.credential, _REMEDY)
        return http_errors.status_error(resource, status, message, hint, retry_after=wait)


def _digests(head: Mapping[str, Any]) -> Mapping[str, str]:  # Any: one type for each of a dozen fields
    is_plain = head.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in head
    # A checksum over parts ends with their number, so it has another length and is ignored.
    return known_digests(
        (
            ("sha256", hex_digest(head.get("ChecksumSHA256"), 32)),
            ("crc32c", hex_digest(head.get("ChecksumCRC32C"), 4)),
            ("crc32", hex_digest(head.get("ChecksumCRC32"), 4)),
            ("md5", md5_of_etag(head.get("ETag")) if is_plain else None),
        )
    )


def _open_client(block: S3CredentialsConfig, transfer: TransferConfig) -> tuple[str, Any]:  # Any: as above
    """Return a client with the keys of the config, or those that AWS's own tools and KServe would use, and their name.

    Many threads can use the client at once.
    """
    from botocore.session import Session  # type: ignore[import-untyped] # has no types

    session = Session(profile=block.profile)
    credential, keys = _keys(session, block)
    client = session.create_client(
        "s3",
        region_name=block.region or session.get_config_variable("region") or _DEFAULT_REGION,
        endpoint_url=block.endpoint_url or _kserve_endpoint(os.environ),
        # With None, botocore reads AWS_CA_BUNDLE.
        verify=None if _is_true(os.environ.get("S3_VERIFY_SSL", "1")) else False,
        config=_client_config(transfer, is_signed=keys is not None),
        **(keys or {}),
    )
    client.meta.events.register_first("before-parse.s3", _require_frame)
    return credential, client


def _require_frame(response_dict: Mapping[str, Any], **_: object) -> None:  # Any: botocore's
    from botocore.exceptions import ConnectionClosedError  # type: ignore[import-untyped] # has no types

    status, headers = response_dict["status_code"], response_dict["headers"]
    if status < 300 and not http_errors.is_framed(status, headers):
        raise ConnectionClosedError(endpoint_url="the store")


def _client_config(transfer: TransferConfig, *, is_signed: bool) -> Any:  # Any: as above
    from botocore import UNSIGNED
    from botocore.config import Config  # type: ignore[import-untyped] # as above

    connect, read = http_errors.client_timeouts(transfer)
    return Config(
        connect_timeout=connect,
        read_timeout=read,
        max_pool_connections=max(64, transfer.parallel),
        # The download retries.
        retries={"total_max_attempts": 1},
        # Some stores send the checksum of the whole object with a range of it.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
        s3=_addressing(os.environ),
        signature_version=None if is_signed else UNSIGNED,
    )


def _keys(session: Any, block: S3CredentialsConfig) -> tuple[str, dict[str, str | None] | None]:  # Any: as above
    """Return the name of the credential, and the keys that replace those of the session; None sends unsigned."""
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
    """Return the endpoint of KServe's variables, unless one of AWS's own is set, which botocore reads itself."""
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
