"""The account of an Azure URI: its address, and the credential of the URI, the config, or the environment variables of
Azure's own tools and KServe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from appliance.config.credentials import AzureCredentialsConfig, CredentialsConfig, block_for, value_of
from appliance.core.errors import StorageError
from appliance.core.uri import redact, scheme_of

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

REMEDY = (
    "set AZURE_STORAGE_ACCESS_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_ID with its tenant and secret, "
    "or storage.credentials.azure to valid credentials"
)

# One of these is set in a pod or machine of Azure's that has an identity.
_IDENTITY_VARIABLES = (
    "AZURE_CLIENT_ID",
    "AZ_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
)
_SAS_LIFETIME = timedelta(days=7)

# Accounts, DNS zones (https://learn.microsoft.com/azure/storage/common/storage-account-overview) and sovereign clouds;
# `dfs` is another endpoint for the same blobs.
_HOST = re.compile(
    r"(?P<account>[a-z0-9]{3,24}(?:-secondary)?)(?P<zone>\.z\d+)?\.(?:blob|dfs)\."
    r"(?P<cloud>storage\.azure\.net|core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn|cloudapi\.de))",
    re.IGNORECASE,
)
_CONTAINER = re.compile(r"\$web|\$root|[a-z0-9](?:-?[a-z0-9])+")


@dataclass(frozen=True, slots=True)
class AzureUri:
    """A blob or directory of a container; account and host are None if the credentials have to provide them.

    `path` is a name without `/` at its ends, "" for the whole container, and `sas` the shared access signature of the
    URI, or "".
    """

    container: str
    path: str
    account: str | None = None
    host: str | None = None
    sas: str = ""
    must_be_directory: bool = False


@dataclass(frozen=True, slots=True)
class AzureAuth:
    """A credential: a signature, tokens, the key of an account, or none of them (anonymous).

    `account`, and `account_url` with its blobs, are None and "" if the credential does not name them. What `find_auth`
    returns has an address, and a signature in place of a key.
    """

    credential: str = "anonymous"
    key: str | None = None
    sas: str = ""
    tokens: AsyncTokenCredential | None = None
    account: str | None = None
    account_url: str = ""
    ca_file: Path | None = None


def is_azure(uri: str) -> bool:
    """Return whether a web URL is one of Azure Blob Storage."""
    try:
        return bool(_HOST.fullmatch(urlsplit(uri).hostname or ""))
    except ValueError:
        return False


def parse(uri: str) -> AzureUri:
    """Parse `az://CONTAINER/PREFIX`, `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX` (abfss and az likewise) or
    `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX?SAS`.
    """
    if is_url := scheme_of(uri) in ("http", "https"):
        parts = urlsplit(uri)
        host, sas = parts.hostname or "", parts.query
        container, _, path = parts.path.lstrip("/").partition("/")
        path = unquote(path)
    else:
        authority, _, path = uri.partition("://")[2].partition("/")
        container, at, host = authority.rpartition("@")
        sas = ""
        if not at and "." in authority:
            container, _, path = path.partition("/")
            host = authority
        elif not at:
            container, host = authority, ""
    found = _HOST.fullmatch(host)
    if not _CONTAINER.fullmatch(container) or (host and not found):
        spellings = "az://CONTAINER/PREFIX or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX"
        right = "https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX" if is_url else spellings
        raise StorageError(f"{redact(uri)}: names no container; write {right}")
    account, blob_host = (found["account"].lower(), _blob_host(found)) if found else (None, None)
    return AzureUri(container, path.strip("/"), account, blob_host, sas, path.endswith("/"))


def _blob_host(found: re.Match[str]) -> str:
    return f"{found['account']}{found['zone'] or ''}.blob.{found['cloud']}".lower()


def find_auth(uri: AzureUri, config: CredentialsConfig, environ: Mapping[str, str]) -> AzureAuth:
    """Return the first that exists: the signature in the URI, the config, the environment variables, anonymous."""
    default_account = environ.get("AZURE_STORAGE_ACCOUNT") or environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    block = _find_block(uri, config, default_account)
    if uri.sas:
        found = AzureAuth("the signature in the URI", sas=uri.sas)
    else:
        found = (block and _from_block(block)) or _from_environment(uri, default_account, environ) or AzureAuth()
    account = uri.account or found.account or (block and block.account) or default_account
    url = (
        (block and block.endpoint_url)
        or found.account_url
        or (uri.host and f"https://{uri.host}")
        or (account and f"https://{account}.blob.core.windows.net")
    )
    if not url or not account:
        raise StorageError(
            f"az://{uri.container}: nothing names the storage account; "
            "set AZURE_STORAGE_ACCOUNT or storage.credentials.azure.account, or write the account into the URI"
        )
    sas = _sign(account, uri.container, found.key) if found.key else found.sas.removeprefix("?")
    return replace(found, key=None, sas=sas, account_url=url.rstrip("/"), ca_file=block.ca_file if block else None)


def _find_block(uri: AzureUri, config: CredentialsConfig, default_account: str | None) -> AzureCredentialsConfig | None:
    account = uri.account or default_account
    # If nothing names the account, the first block does.
    return block_for(config.azure, "account", account) or (None if account else next(iter(config.azure), None))


def _from_block(block: AzureCredentialsConfig) -> AzureAuth | None:
    section = "of storage.credentials.azure"
    if text := value_of(block.connection_string):
        return _from_connection_string(text, f"connection_string {section}")
    if key := value_of(block.account_key):
        return AzureAuth(f"account_key {section}", key=key)
    if sas := value_of(block.sas_token):
        return AzureAuth(f"sas_token {section}", sas=sas)
    if secret := value_of(block.client_secret):
        return _service_principal(f"client_secret {section}", block.tenant_id, block.client_id, secret)
    if block.managed_identity:
        from azure.identity.aio import ManagedIdentityCredential

        return AzureAuth(f"managed_identity {section}", tokens=ManagedIdentityCredential(client_id=block.client_id))
    return AzureAuth() if block.anonymous else None


def _from_environment(uri: AzureUri, default_account: str | None, environ: Mapping[str, str]) -> AzureAuth | None:
    if text := environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        found = _from_connection_string(text, "AZURE_STORAGE_CONNECTION_STRING")
        # A signature for one account must not be sent to another.
        if uri.account in (None, found.account):
            return found
    is_same_account = uri.account is None or default_account in (None, uri.account)
    for name in (
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
    ):
        if is_same_account and (value := environ.get(name)):
            # KServe accepts a signature in the variable of the key as well.
            return AzureAuth(name, sas=value) if "sig=" in value else AzureAuth(name, key=value)
    if any(environ.get(name) for name in _IDENTITY_VARIABLES):
        return _identity(environ)
    return None


def _identity(environ: Mapping[str, str]) -> AzureAuth:
    """Return a service principal of Azure's or KServe's variables, or the identity of the machine or pod."""
    tenant, client, secret = (
        environ.get(f"AZURE_{name}") or environ.get(f"AZ_{name}")
        for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")
    )
    if tenant and client and secret:
        return _service_principal("service principal of AZURE_CLIENT_ID", tenant, client, secret)
    from azure.identity.aio import DefaultAzureCredential

    return AzureAuth("Azure's default credential", tokens=DefaultAzureCredential())


def _service_principal(description: str, tenant: str | None, client: str | None, secret: str) -> AzureAuth:
    from azure.identity.aio import ClientSecretCredential

    try:
        tokens = ClientSecretCredential(tenant or "", client or "", secret)
    except ValueError as error:
        raise StorageError(f"{description}: {error}; correct tenant and client id") from error
    return AzureAuth(description, tokens=tokens)


def _from_connection_string(text: str, description: str) -> AzureAuth:
    # Values may contain `=`, as keys and signatures do.
    pairs = dict(part.partition("=")[::2] for part in text.split(";") if part)
    account = pairs.get("AccountName")
    suffix = pairs.get("EndpointSuffix", "core.windows.net")
    protocol = pairs.get("DefaultEndpointsProtocol", "https")
    return AzureAuth(
        description,
        key=pairs.get("AccountKey"),
        sas=pairs.get("SharedAccessSignature", ""),
        account=account,
        account_url=pairs.get("BlobEndpoint") or (f"{protocol}://{account}.blob.{suffix}" if account else ""),
    )


def _sign(account: str, container: str, key: str) -> str:
    """Return a signature that allows to read and list one container; the key itself is used for nothing else."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    try:
        return generate_container_sas(
            account_name=account,
            container_name=container,
            account_key=key,
            permission=ContainerSasPermissions(read=True, list=True),
            expiry=datetime.now(UTC) + _SAS_LIFETIME,
        )
    except ValueError as error:
        raise StorageError(f"account {account}: its key is invalid; copy it again") from error
