"""Config of the credentials for each store (`storage.credentials`).

What it leaves out comes from the variables and files that the stores' own tools read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import Field, SecretStr, model_validator

from appliance.config.base import BaseConfig, text_like

Url = Annotated[str, text_like("^https?://[^/]", "http:// or https:// and a host")]
HeaderName = Annotated[str, text_like("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", "the name of a header: letters, digits and -")]


class StoreCredentialsConfig(BaseConfig):
    """One entry of credentials: at most one method of authentication, with all keys that it requires."""

    METHODS: ClassVar[Sequence[Sequence[str]]] = ()
    """The keys of each method of authentication."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    """Keys that a method does not require."""

    ca_file: Path | None = None
    """PEM file of certificate authorities that are trusted for this entry, in addition to those of the system, of
    `SSL_CERT_FILE` and of `REQUESTS_CA_BUNDLE`."""

    @model_validator(mode="after")
    def _has_one_complete_method(self) -> Self:
        given = [[key for key in method if getattr(self, key)] for method in self.METHODS]
        used = [keys for keys in given if keys]
        if len(used) > 1:
            raise ValueError(f"gives {' and '.join(keys[0] for keys in used)}; give only one of them")
        for method, keys in zip(self.METHODS, given, strict=True):
            if keys and (missing := [key for key in method if key not in keys and key not in self.OPTIONAL]):
                raise ValueError(f"gives {keys[0]} without {missing[0]}; give both, or neither")
        return self


class S3CredentialsConfig(StoreCredentialsConfig):
    """Credentials for `s3://`; unset keys use the AWS credential chain."""

    METHODS = (("access_key_id", "secret_access_key", "session_token"), ("profile",), ("anonymous",))
    OPTIONAL = frozenset({"session_token"})

    bucket: str | None = None
    """Bucket of this entry; unset is every bucket without its own entry."""

    access_key_id: SecretStr | None = None
    """Access key, with its `secret_access_key`; unset uses the AWS chain: variables, files, roles."""

    secret_access_key: SecretStr | None = None
    """Secret of the access key."""

    session_token: SecretStr | None = None
    """Token of temporary keys; unset for permanent keys."""

    profile: str | None = None
    """Profile of the AWS config files; unset is `AWS_PROFILE`, or the default profile."""

    anonymous: bool = False
    """Send unsigned requests, for public buckets."""

    endpoint_url: Url | None = None
    """Address of an S3-compatible store; unset is `AWS_ENDPOINT_URL_S3`, or Amazon."""

    region: str | None = None
    """Region of the bucket; unset is `AWS_DEFAULT_REGION`, or the region in the AWS config files."""


class GcsCredentialsConfig(StoreCredentialsConfig):
    """Credentials for `gs://`; unset keys use Google's application default credentials."""

    METHODS = (("key_file",), ("key",), ("anonymous",))

    bucket: str | None = None
    """Bucket of this entry; unset is every bucket without its own entry."""

    key_file: Path | None = None
    """JSON file of a service account or of workload identity; unset is `GOOGLE_APPLICATION_CREDENTIALS`."""

    key: SecretStr | None = None
    """The content of such a file, such as `${env:GCP_KEY}`."""

    anonymous: bool = False
    """Send no token, for public buckets."""

    endpoint_url: Url | None = None
    """Address of an emulator or a proxy; unset is `STORAGE_EMULATOR_HOST`, or Google."""


class AzureCredentialsConfig(StoreCredentialsConfig):
    """Credentials for `az://`, `abfs://`, `abfss://` and Azure's `https://` URLs."""

    METHODS = (
        ("connection_string",),
        ("account_key",),
        ("sas_token",),
        ("client_secret", "tenant_id"),
        ("managed_identity",),
        ("anonymous",),
    )

    account: str | None = None
    """Storage account of this entry, also for URIs without an account; unset is every account without its own entry."""

    connection_string: SecretStr | None = None
    """Connection string of the account."""

    account_key: SecretStr | None = None
    """Key of the account."""

    sas_token: SecretStr | None = None
    """Shared access signature: the query string of a signed URL."""

    tenant_id: str | None = None
    """Directory of a service principal."""

    client_id: str | None = None
    """Service principal, or the user-assigned identity if `managed_identity` is set."""

    client_secret: SecretStr | None = None
    """Secret of the service principal."""

    managed_identity: bool = False
    """Use the identity of the machine or pod."""

    anonymous: bool = False
    """Send no credentials, for public containers."""

    endpoint_url: Url | None = None
    """Address of the account's blobs if it is not Azure's, such as `http://127.0.0.1:10000/devstoreaccount1`."""

    @model_validator(mode="after")
    def _is_known_by_its_client_id(self) -> Self:
        # A principal needs it, an identity may have it, and alone it says nothing.
        if self.client_secret and not self.client_id:
            raise ValueError("gives client_secret without client_id; give both, or neither")
        if self.client_id and not (self.client_secret or self.managed_identity):
            raise ValueError("gives client_id alone; give client_secret and tenant_id too, or managed_identity: true")
        return self


class HubCredentialsConfig(StoreCredentialsConfig):
    """Credentials for `hf://`."""

    owner: str | None = None
    """Owner of the models of this entry; unset is every owner without its own entry."""

    token: SecretStr | None = None
    """Token with read access to the models; unset is `HF_TOKEN`, or the token of `hf auth login`."""

    endpoint_url: Url | None = None
    """Address of a mirror; unset is `HF_ENDPOINT`, or huggingface.co."""


class HttpCredentialsConfig(StoreCredentialsConfig):
    """Credentials for `https://` and `http://`."""

    host: Annotated[str, Field(min_length=1)]
    """The only host that gets these headers; with `:PORT` only that port."""

    headers: Mapping[HeaderName, SecretStr] = {}
    """Headers of each request to the host, such as `Authorization: Bearer ${env:TOKEN}`."""

    @model_validator(mode="after")
    def _is_one_line_each(self) -> Self:
        if "headers" not in self.model_fields_set and self.ca_file is None:
            raise ValueError("gives neither headers nor ca_file; give one of them")
        for name, value in self.headers.items():
            if not (value_of(value) or "").isprintable():
                raise ValueError(f"the header {name} has a line break or control character in it; remove it")
        return self


class OciCredentialsConfig(StoreCredentialsConfig):
    """Credentials for `oci://`."""

    METHODS = (("username", "password"), ("anonymous",))

    registry: Annotated[str, Field(min_length=1)]
    """The only registry of this entry, with its port, such as `ghcr.io`."""

    username: str | None = None
    """User of the registry, with its `password`; unset is the login of docker or podman (`docker login`)."""

    password: SecretStr | None = None
    """Password or access token of the user."""

    anonymous: bool = False
    """Use no login, for public artifacts."""

    endpoint_url: Url | None = None
    """
    Address of a mirror, such as `https://harbor.example.com/ghcr`, whose path precedes the name; the login is for the
    mirror. Unset is the registry itself.
    """


class CredentialsConfig(BaseConfig):
    """Credentials for each kind of store; an entry that names its bucket, account, owner or host goes first."""

    s3: tuple[S3CredentialsConfig, ...] = ()
    """For `s3://`."""

    gcs: tuple[GcsCredentialsConfig, ...] = ()
    """For `gs://`."""

    azure: tuple[AzureCredentialsConfig, ...] = ()
    """For `az://`, `abfs://`, `abfss://` and Azure's `https://` URLs."""

    hf: tuple[HubCredentialsConfig, ...] = ()
    """For `hf://`."""

    http: tuple[HttpCredentialsConfig, ...] = ()
    """For `https://` and `http://`."""

    oci: tuple[OciCredentialsConfig, ...] = ()
    """For `oci://`."""


Block = TypeVar("Block", bound=StoreCredentialsConfig)


def block_for(blocks: Sequence[Block], key: str, value: str | None) -> Block | None:
    """Return the block whose `key` is `value`, or else the one that does not set `key`."""
    fitting = [block for block in blocks if getattr(block, key) in (value, None)]
    return min(fitting, key=lambda block: getattr(block, key) is None, default=None)


def value_of(secret: SecretStr | None) -> str | None:
    """Return the text of a secret, for the store's client only."""
    # The content of a file often ends with a newline.
    return secret.get_secret_value().strip() if secret else None
