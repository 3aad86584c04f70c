"""The spellings of a place in Azure Blob Storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from appliance.core.errors import StorageError
from appliance.core.uri import redact, scheme_of
from appliance.storage.filesystems.object_listing import ObjectLocation, place_of

# Accounts, DNS zones (https://learn.microsoft.com/azure/storage/common/storage-account-overview) and sovereign clouds;
# `dfs` is the other door to the same blobs.
_HOST = re.compile(
    r"(?P<account>[a-z0-9]{3,24}(?:-secondary)?)(?P<zone>\.z\d+)?\.(?:blob|dfs)\."
    r"(?P<cloud>storage\.azure\.net|core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn|cloudapi\.de))",
    re.IGNORECASE,
)
_CONTAINER = re.compile(r"\$web|\$root|[a-z0-9](?:-?[a-z0-9])+")


@dataclass(frozen=True, slots=True)
class AzureUri:
    """A place in a container; account and host are None where the URI leaves them to the credentials.

    `sas` is the shared access signature of the URI, or "".
    """

    place: ObjectLocation
    account: str | None = None
    host: str | None = None
    sas: str = ""


def is_azure(uri: str) -> bool:
    """Whether a web URL leads to Azure Blob Storage."""
    try:
        return bool(_HOST.fullmatch(urlsplit(uri).hostname or ""))
    except ValueError:
        return False


def parse(uri: str) -> AzureUri:
    """Read `az://CONTAINER/PREFIX`, `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX` (abfss and az likewise) or
    `https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX?SAS`.

    Raises:
        StorageError: it names no container, or a host that is not Azure's.
    """
    if scheme_of(uri) in ("http", "https"):
        return _from_url(uri)
    authority, _, path = uri.partition("://")[2].partition("/")
    container, at, host = authority.rpartition("@")
    if not at and "." in authority:
        container, _, path = path.partition("/")
        host = authority
    elif not at:
        container, host = authority, ""
    found = _HOST.fullmatch(host) if host else None
    if not _CONTAINER.fullmatch(container) or (host and not found):
        raise StorageError(
            f"{redact(uri)}: names no container; "
            "write az://CONTAINER/PREFIX or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX"
        )
    return AzureUri(place_of(container, path), found and found["account"], found and _blob_host(found))


def _from_url(uri: str) -> AzureUri:
    parts = urlsplit(uri)
    found = _HOST.fullmatch(parts.hostname or "")
    container, _, path = parts.path.lstrip("/").partition("/")
    if not found or not _CONTAINER.fullmatch(container):
        raise StorageError(
            f"{redact(uri)}: names no container; write https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX"
        )
    return AzureUri(place_of(container, unquote(path)), found["account"].lower(), _blob_host(found), parts.query)


def canonical(account_url: str, place: ObjectLocation) -> str:
    """The one spelling of a place, without secrets."""
    return f"{account_url}/{place.bucket}/{quote(place.path)}".rstrip("/")


def _blob_host(found: re.Match[str]) -> str:
    return f"{found['account']}{found['zone'] or ''}.blob.{found['cloud']}".lower()
