"""`s3://BUCKET/PREFIX`: Amazon S3, and every store with its protocol, through s3fs."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from appliance.config.credentials import S3CredentialsConfig, block_for, value_of
from appliance.config.storage import GlobalStorageConfig
from appliance.core.concurrency import in_thread
from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError, StorageUnavailableError
from appliance.core.uri import redact
from appliance.storage.filesystems import errors, network
from appliance.storage.filesystems.base import NO_OPTIONS, Options, RemoteFile, hex_digest, known_digests
from appliance.storage.filesystems.errors import FailedResponse
from appliance.storage.filesystems.store import (
    Content,
    FilesystemStore,
    Info,
    bucket_and_path,
    require_known_options,
    require_package,
)

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._:-]+"
_DEFAULT_REGION = "us-east-1"

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html: codes whose status alone would mislead.
_CREDENTIAL_CODES = {
    "ExpiredToken": "the session token has expired",
    "InvalidAccessKeyId": "the store does not know the access key ID",
    "InvalidToken": "the session token is wrong",
    "SignatureDoesNotMatch": "the secret access key is not that of the access key ID",
    "TokenRefreshRequired": "the session token must be renewed",
}
_TEMPORARY_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Busy"})

# What OpenSSL says of a server that answers in plain text.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})


class KserveSettings(BaseSettings):
    """KServe's environment variables for S3.

    Source: https://github.com/kserve/kserve/blob/master/python/storage/kserve_storage/kserve_storage.py
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    s3_endpoint: str | None = None
    s3_use_https: bool = True
    s3_verify_ssl: bool = True
    s3_user_virtual_bucket: bool = False
    s3_use_accelerate: bool = False
    is_anonymous: bool = Field(default=False, validation_alias="awsAnonymousCredential")

    @property
    def endpoint(self) -> str | None:
        """The address of the store; None if one of AWS's own variables has it, which botocore reads itself."""
        if not self.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            return None
        if "://" in self.s3_endpoint:
            return self.s3_endpoint
        return f"{'https' if self.s3_use_https else 'http'}://{self.s3_endpoint}"


class S3Store(FilesystemStore):
    """A prefix of a bucket, or one object."""

    remedy = (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or storage.credentials.s3 to valid credentials"
    )

    def __init__(self, uri: str, settings: GlobalStorageConfig, options: Options = NO_OPTIONS) -> None:
        require_package("s3fs", "s3", "Fetching s3://")
        super().__init__(uri, settings, options)
        self._bucket, path = bucket_and_path(uri, _BUCKET)
        self._root = f"{self._bucket}/{path}".rstrip("/")
        self._uri = f"s3://{self._root}"
        self._must_be_directory = self._must_be_directory or not path
        entries = settings.credentials.s3
        block = block_for(entries, "bucket", self._bucket)
        self._block = block or S3CredentialsConfig()
        if "?versionId=" in path:
            raise StorageError(f"{redact(uri)}: write the version of an object as storage.options: {{versionId: ID}}")
        self._options = dict(options)
        self._version = self._options.pop("versionId", None)
        self._kserve = _read_kserve_settings()
        self._endpoint = self._block.endpoint_url or self._kserve.endpoint
        self.credential = "AWS credentials"
        if entries and block is None:
            others = ", ".join(repr(each.bucket) for each in entries)
            self.remedy = f"no entry of storage.credentials.s3 is for the bucket {self._bucket!r}, only for {others}"
        elif self._block.access_key_id:
            self.remedy = "correct access_key_id and secret_access_key in storage.credentials.s3"

    async def _connect(self) -> Any:  # Any: s3fs has no types
        from aiobotocore.session import AioSession
        from s3fs import S3FileSystem

        block, transfer = self._block, self._settings.transfer
        session = AioSession(profile=block.profile)
        # To parse the times of each response takes as long as to sign it, and nothing here reads them.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        self.credential, keys = await _keys(session, block, self._kserve)
        connect, _ = network.client_timeouts(transfer)
        arguments = {
            "session": session,
            "endpoint_url": self._endpoint,
            "client_kwargs": {
                "region_name": block.region or session.get_config_variable("region") or _DEFAULT_REGION,
            },
            "config_kwargs": {
                "connect_timeout": connect,
                "http_session_cls": await _session_class(
                    block.ca_file or session.get_config_variable("ca_bundle"), is_verified=self._kserve.s3_verify_ssl
                ),
                # The connector has those of the environment.
                "proxies": {},
                # The download watches for stalls.
                "read_timeout": None,
                "user_agent": "appliance",
                # The download retries.
                "retries": {"total_max_attempts": 1},
                # Some stores send the checksum of the whole object with a range of it.
                "response_checksum_validation": "when_required",
                "request_checksum_calculation": "when_required",
                "s3": {
                    "use_accelerate_endpoint": self._kserve.s3_use_accelerate,
                    **({"addressing_style": "virtual"} if self._kserve.s3_user_virtual_bucket else {}),
                },
            },
            **keys,
            **({"version_aware": True} if self._version else {}),
        }
        require_known_options(S3FileSystem, self._options)
        filesystem = S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **{**arguments, **self._options})
        filesystem.retries = 1
        return filesystem

    async def _disconnect(self) -> None:
        if self._filesystem._s3 is not None:
            await self._filesystem._s3creator.__aexit__(None, None, None)

    async def _find(self) -> Mapping[str, Info]:
        return {} if self._version else await super()._find()

    async def _info(self, path: str) -> Info:
        info: Info = await self._call("info", path, version_id=self._version)
        return info

    async def _describe(self, path: str, name: str, info: Info) -> RemoteFile:
        """Send a HEAD request, because a listing has no checksums, and does not say whether an ETag is an MD5."""
        if info["size"] == 0:
            return RemoteFile(name, 0)
        head = await self._filesystem._call_s3("head_object", **self._object(path), ChecksumMode="ENABLED")
        return RemoteFile(name, head["ContentLength"], head.get("ETag") or None, _digests(head))

    @asynccontextmanager
    async def _open_range(self, path: str, file: RemoteFile, start: int, end: int) -> AsyncIterator[Content]:
        condition = {"IfMatch": file.version} if file.version else {}
        response = await self._filesystem._call_s3(
            "get_object", **self._object(path), Range=f"bytes={start}-{end - 1}", **condition
        )
        async with response["Body"] as body:
            errors.check_content_range(self._resource(file), response.get("ContentRange"), file.size, start, end)
            yield body.raw_stream.content

    def _object(self, path: str) -> dict[str, str]:
        bucket, key, _ = self._filesystem.split_path(path)
        return {"Bucket": bucket, "Key": key} | ({"VersionId": self._version} if self._version else {})

    def own_error(self, resource: str, error: BaseException, response: FailedResponse | None) -> StorageError | None:
        from botocore import exceptions as boto  # type: ignore[import-untyped] # has no types

        temporary = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError)
        code = response.message if response else ""
        if code == "NoSuchBucket":
            return ArtifactNotFoundError(
                f"{resource}: there is no bucket {self._bucket!r}; check its name and the endpoint"
            )
        if code == "InvalidObjectState":
            return StorageError(f"{resource}: is in an archive storage class; restore it first")
        if code in _CREDENTIAL_CODES:
            store = f"the store {self._endpoint}" if self._endpoint else "the store"
            return AccessDeniedError(
                f"{resource}: {store} rejects {self.credential}: {_CREDENTIAL_CODES[code]} ({code}); {self.remedy}"
            )
        if code in _TEMPORARY_CODES:
            return StorageUnavailableError(f"{resource}: the store responds {code}; try again later")
        if isinstance(error, ssl.SSLError) and getattr(error, "reason", None) in _NO_TLS:
            is_kserves = self._endpoint and not self._block.endpoint_url
            remedy = "set S3_USE_HTTPS=0" if is_kserves else "begin its address with http://"
            return StorageError(
                f"{resource}: the endpoint {self._endpoint or 'in AWS_ENDPOINT_URL'} does not speak TLS; {remedy}"
            )
        if isinstance(error, boto.BotoCoreError) and not isinstance(error, temporary):
            if errors.is_credential_error(error):
                return AccessDeniedError(f"{resource}: {errors.clean(str(error))}; {self.remedy}")
            return StorageError(f"{resource}: {errors.clean(str(error))}; check the URI and storage.credentials.s3")
        return None


def find_endpoint(uri: str, settings: GlobalStorageConfig) -> str | None:
    """Return the address that the config or the environment has for a bucket; None is Amazon's."""
    block = block_for(settings.credentials.s3, "bucket", bucket_and_path(uri, _BUCKET)[0])
    return (
        (block and block.endpoint_url)
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or _read_kserve_settings().endpoint
    )


def _digests(head: Mapping[str, Any]) -> Mapping[str, str]:  # Any: one type for each of a dozen fields
    is_plain = head.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in head
    etag = str(head.get("ETag", "")).strip('"')
    # Of an object in parts, a checksum may be one over those of the parts, which some stores do not mark.
    is_whole = "-" not in etag or head.get("ChecksumType") == "FULL_OBJECT"
    return known_digests(
        (
            *(
                (name, hex_digest(head.get(f"Checksum{name.upper()}"), size) if is_whole else None)
                for name, size in (("sha256", 32), ("crc32c", 4), ("crc32", 4))
            ),
            # The ETag of an object that was uploaded in one part is its MD5.
            ("md5", etag if is_plain and re.fullmatch("[0-9a-f]{32}", etag) else None),
        )
    )


async def _session_class(ca_file: Path | str | None, *, is_verified: bool) -> type:
    """Return the class of botocore's sessions, with the connections of all other stores."""
    from aiobotocore.httpsession import AIOHTTPSession

    context = await in_thread(network.tls_context, ca_file) if is_verified else False

    class Session(AIOHTTPSession):  # type: ignore[misc] # aiobotocore has no types
        async def _create_connector(self, _proxy_url: None) -> network.Connector:
            return network.Connector(limit=0, ssl=context)

        async def _get_session(self, proxy_url: None) -> Any:  # Any: what sends requests
            session = await super()._get_session(proxy_url)
            # A redirect would take the session token to a host that the store names.
            return SimpleNamespace(request=partial(session.request, allow_redirects=False))

    return Session


def _read_kserve_settings() -> KserveSettings:
    try:
        return KserveSettings()
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        name = field.upper() if field in KserveSettings.model_fields else field
        raise StorageError(
            f"the environment variable {name} is neither 1 nor 0, or words for these; correct it"
        ) from error


async def _keys(
    session: AioSession, block: S3CredentialsConfig, kserve: KserveSettings
) -> tuple[str, dict[str, Any]]:  # Any: of s3fs
    """Return the name of the credential, and its arguments; none are those that AWS's own tools would use."""
    if block.anonymous or (kserve.is_anonymous and not block.access_key_id and not block.profile):
        return "anonymous", {"anon": True}
    if block.access_key_id:
        return "the keys of storage.credentials.s3", {
            "key": value_of(block.access_key_id),
            "secret": value_of(block.secret_access_key),
            "token": value_of(block.session_token),
        }
    found = await session.get_credentials()
    if found is None:
        return "anonymous, as no AWS credentials are set up", {"anon": True}
    return f"AWS credentials ({found.method})", {}
