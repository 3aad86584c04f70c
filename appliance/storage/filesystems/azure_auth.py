"""
Who we are to Azure Blob Storage, from the URI, the config or the variables that Azure's own tools and KServe read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from appliance.config.credentials import AzureCredentials, CredentialsConfig, block_for, value_of
from appliance.core.errors import StorageError
from appliance.storage.filesystems.azure_uri import AzureUri

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

REMEDY = (
    "set AZURE_STORAGE_ACCESS_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_ID with its tenant and secret, "
    "or storage.credentials.azure to who may read it"
)

# What says, in a pod or machine of Azure's, that it has an identity.
_IDENTITY_VARIABLES = (
    "AZURE_CLIENT_ID",
    "AZ_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
)
_SAS_LIFE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class AzureAuth:
    """The address of an account's blobs, and as whom we ask there: with a signature, with tokens, or as nobody."""

    credential: str
    account_url: str
    sas: str = ""
    tokens: AsyncTokenCredential | None = None


@dataclass(frozen=True, slots=True)
class _Way:
    """One credential before it is put to use."""

    credential: str = "anonymous"
    key: str | None = None
    sas: str = ""
    tokens: AsyncTokenCredential | None = None
    account: str | None = None
    account_url: str | None = None


def access_to(wanted: AzureUri, config: CredentialsConfig, environ: Mapping[str, str]) -> AzureAuth:
    """The first of these that is there: the signature in the URI, the config, the variables, nothing.

    Raises:
        StorageError: nothing says which account it is.
    """
    named = environ.get("AZURE_STORAGE_ACCOUNT") or environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    block = _block(wanted, config, named)
    if wanted.sas:
        way = _Way("the signature in the URI", sas=wanted.sas)
    else:
        way = (_from_block(block) if block else None) or _from_environment(wanted, named, environ) or _Way()
    account = wanted.account or way.account or (block and block.account) or named
    address = (block and block.endpoint_url) or way.account_url
    url = (
        address
        or (wanted.host and f"https://{wanted.host}")
        or (account and f"https://{account}.blob.core.windows.net")
    )
    if not url or not account:
        raise StorageError(
            f"az://{wanted.place.bucket}: nothing says which storage account; "
            "set AZURE_STORAGE_ACCOUNT or storage.credentials.azure.account, or write the account into the URI"
        )
    sas = _signature(account, wanted.place.bucket, way.key) if way.key else way.sas
    return AzureAuth(way.credential, url.rstrip("/"), sas.removeprefix("?"), way.tokens)


def _block(wanted: AzureUri, config: CredentialsConfig, named: str | None) -> AzureCredentials | None:
    account = wanted.account or named
    # Where nothing names the account, the first block does.
    return block_for(config.azure, "account", account) or (None if account else next(iter(config.azure), None))


def _from_block(block: AzureCredentials) -> _Way | None:
    where = "of storage.credentials.azure"
    if text := value_of(block.connection_string):
        return _from_connection_string(text, f"connection_string {where}")
    if key := value_of(block.account_key):
        return _Way(f"account_key {where}", key=key)
    if sas := value_of(block.sas_token):
        return _Way(f"sas_token {where}", sas=sas)
    if secret := value_of(block.client_secret):
        return _principal(f"client_secret {where}", block.tenant_id, block.client_id, secret)
    if block.managed_identity:
        from azure.identity.aio import ManagedIdentityCredential

        return _Way(f"managed_identity {where}", tokens=ManagedIdentityCredential(client_id=block.client_id))
    return _Way() if block.anonymous else None


def _from_environment(wanted: AzureUri, named: str | None, environ: Mapping[str, str]) -> _Way | None:
    if text := environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        way = _from_connection_string(text, "AZURE_STORAGE_CONNECTION_STRING")
        # A signature for one account is no business of another's.
        if wanted.account in (None, way.account):
            return way
    is_ours = wanted.account is None or named in (None, wanted.account)
    for name in (
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
    ):
        if is_ours and (value := environ.get(name)):
            # KServe takes a signature in the variable of the key, too.
            return _Way(name, sas=value) if "sig=" in value else _Way(name, key=value)
    if any(environ.get(name) for name in _IDENTITY_VARIABLES):
        return _identity(environ)
    return None


def _identity(environ: Mapping[str, str]) -> _Way:
    """A service principal, in Azure's variables or in KServe's, or what the machine or pod has."""
    tenant, client, secret = (
        environ.get(f"AZURE_{name}") or environ.get(f"AZ_{name}")
        for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")
    )
    if tenant and client and secret:
        return _principal("service principal of AZURE_CLIENT_ID", tenant, client, secret)
    from azure.identity.aio import DefaultAzureCredential

    return _Way("Azure's default credential", tokens=DefaultAzureCredential())


def _principal(credential: str, tenant: str | None, client: str | None, secret: str) -> _Way:
    from azure.identity.aio import ClientSecretCredential

    try:
        tokens = ClientSecretCredential(tenant or "", client or "", secret)
    except ValueError as error:
        raise StorageError(f"{credential}: {error}; correct tenant and client id") from error
    return _Way(credential, tokens=tokens)


def _from_connection_string(text: str, credential: str) -> _Way:
    # Values may have `=` in them, as keys and signatures do.
    pairs = dict(part.partition("=")[::2] for part in text.split(";") if part)
    account = pairs.get("AccountName")
    suffix = pairs.get("EndpointSuffix", "core.windows.net")
    protocol = pairs.get("DefaultEndpointsProtocol", "https")
    return _Way(
        credential,
        key=pairs.get("AccountKey"),
        sas=pairs.get("SharedAccessSignature", ""),
        account=account,
        account_url=pairs.get("BlobEndpoint") or (account and f"{protocol}://{account}.blob.{suffix}"),
    )


def _signature(account: str, container: str, key: str) -> str:
    """A signature that lets read and list one container: the key itself signs nothing else."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    try:
        return generate_container_sas(
            account_name=account,
            container_name=container,
            account_key=key,
            permission=ContainerSasPermissions(read=True, list=True),
            expiry=datetime.now(UTC) + _SAS_LIFE,
        )
    except ValueError as error:
        raise StorageError(f"account {account}: its key is no key; copy it again") from error
