"""Azure Blob Storage: how its places are spelt, who we are to it, and what its answers mean."""

from __future__ import annotations

import pytest
from storage.filesystems.test_contract import listed, opened, read
from storage.servers.azure import ACCOUNT, CONTAINER, KEY, PRIVATE, AzureServer

from appliance.config.credentials import CredentialsConfig
from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import AccessDeniedError, ArtifactNotFoundError, StorageError
from appliance.storage.filesystems.azure import AzureStore
from appliance.storage.filesystems.azure_account import AzureUri, find_auth, is_azure, parse

Environment = pytest.MonkeyPatch
HOST = "acct.blob.core.windows.net"


def settings(**block: object) -> GlobalStorageConfig:
    """Settings with one block of credentials."""
    transfer = {"stall_seconds": 30, "retries": 0}
    return GlobalStorageConfig.model_validate(
        {"transfer": transfer, "credentials": {"azure": [block] if block else []}}
    )


@pytest.fixture(scope="module")
def server(azurite: AzureServer) -> AzureServer:
    """A store with a blob for all, and one for those with a credential."""
    azurite.put("open/x.txt", b"open")
    azurite.put("closed/x.txt", b"closed", PRIVATE)
    return azurite


async def credential_and_contents(uri: str, given: GlobalStorageConfig) -> tuple[str, dict[str, bytes]]:
    """Which credential was used, and what it could read."""
    async with opened(uri, given) as store:
        files = (await store.list()).files
        return store.credential, {file.name: await read(store, file, 0, file.size) for file in files}


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("az://models/a/b", AzureUri("models", "a/b")),
        ("abfs://models/a%20b", AzureUri("models", "a%20b")),
        ("abfss://models@acct.dfs.core.windows.net/a", AzureUri("models", "a", "acct", HOST)),
        ("abfs://models@acct.blob.core.windows.net", AzureUri("models", "", "acct", HOST)),
        (f"az://{HOST}/models/a", AzureUri("models", "a", "acct", HOST)),
        (f"https://{HOST}/models/a%20b", AzureUri("models", "a b", "acct", HOST)),
        (f"https://{HOST}/models", AzureUri("models", "", "acct", HOST)),
        (
            f"https://{HOST}/models/a?sv=1&sig=x%2F",
            AzureUri("models", "a", "acct", HOST, "sv=1&sig=x%2F"),
        ),
        (
            "https://acct.z12.blob.storage.azure.net/models/a",
            AzureUri("models", "a", "acct", "acct.z12.blob.storage.azure.net"),
        ),
        (
            "https://acct.blob.core.usgovcloudapi.net/models/a/",
            AzureUri("models", "a", "acct", "acct.blob.core.usgovcloudapi.net", must_be_directory=True),
        ),
    ],
)
def test_all_spellings_of_a_place_are_read(uri: str, wanted: AzureUri) -> None:
    """Those of adlfs, of Azure's own drivers, and the URLs that its portal shows."""
    assert parse(uri) == wanted


@pytest.mark.parametrize(
    "uri",
    [
        "az://",
        "az:///x",
        "abfs://UPPER/x",
        "abfs://models@example.com/x",
        "az://example.com/models/x",
        f"https://{HOST}",
    ],
)
def test_a_uri_without_a_container_is_refused(uri: str) -> None:
    """Also one that names somebody else's host."""
    with pytest.raises(StorageError, match="names no container"):
        parse(uri)


@pytest.mark.parametrize("uri", ["https://example.com/x", "https://blob.core.windows.net.example.com/x", "https://a/b"])
def test_other_hosts_are_not_azures(uri: str) -> None:
    """A credential of Azure's never goes there."""
    assert not is_azure(uri)


def test_a_place_without_an_account_says_what_to_set() -> None:
    """`az://` leaves it to the credentials."""
    with pytest.raises(StorageError, match=r"set AZURE_STORAGE_ACCOUNT or storage.credentials.azure.account"):
        AzureStore("az://models/x", GlobalStorageConfig())


@pytest.mark.parametrize(
    ("environment", "credential"),
    [
        ({}, "anonymous"),
        ({"AZURE_STORAGE_ACCESS_KEY": KEY}, "AZURE_STORAGE_ACCESS_KEY"),
        ({"AZURE_STORAGE_KEY": KEY}, "AZURE_STORAGE_KEY"),
        ({"AZURE_STORAGE_ACCESS_KEY": "?sv=1&sig=x"}, "AZURE_STORAGE_ACCESS_KEY"),
        ({"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"}, "AZURE_STORAGE_SAS_TOKEN"),
        ({"AZURE_STORAGE_ACCOUNT": "other", "AZURE_STORAGE_ACCESS_KEY": KEY}, "anonymous"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=acct;AccountKey={KEY}"}, "AZURE_STORAGE_CONNECTION_STRING"),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=other;AccountKey={KEY}"}, "anonymous"),
        (
            {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"},
            "service principal of AZURE_CLIENT_ID",
        ),
        ({"AZ_TENANT_ID": "t", "AZ_CLIENT_ID": "c", "AZ_CLIENT_SECRET": "s"}, "service principal of AZURE_CLIENT_ID"),
        ({"AZURE_CLIENT_ID": "c"}, "Azure's default credential"),
        ({"IDENTITY_ENDPOINT": "http://127.0.0.1:9"}, "Azure's default credential"),
    ],
)
def test_the_variables_are_those_of_azures_tools(environment: dict[str, str], credential: str) -> None:
    """And KServe's; what is for another account is left alone."""
    found = find_auth(parse(f"https://{HOST}/models/x"), CredentialsConfig(), environment)

    assert (found.credential, found.account_url) == (credential, f"https://{HOST}")


def test_a_signature_in_the_uri_goes_before_all_else() -> None:
    """Whoever writes it there means it, and it is in no name."""
    store = AzureStore(f"https://{HOST}/models/x?sv=1&sig=s3cret", settings(account="acct", account_key=KEY))

    assert store.credential == "the signature in the URI"


@pytest.mark.parametrize(
    ("block", "credential"),
    [
        ({"managed_identity": True}, "managed_identity of storage.credentials.azure"),
        ({"tenant_id": "t", "client_id": "c", "client_secret": "s"}, "client_secret of storage.credentials.azure"),
        ({"anonymous": True}, "anonymous"),
    ],
)
def test_the_config_goes_before_the_variables(
    only_given_credentials: Environment, block: dict[str, object], credential: str
) -> None:
    """Each of its ways."""
    only_given_credentials.setenv("AZURE_STORAGE_ACCESS_KEY", KEY)

    assert AzureStore(f"https://{HOST}/models/x", settings(**block)).credential == credential


async def test_a_connection_string_says_it_all(server: AzureServer, only_given_credentials: Environment) -> None:
    """Account, key and address."""
    only_given_credentials.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string)

    found = await credential_and_contents(f"az://{PRIVATE}/closed", GlobalStorageConfig())
    assert found == ("AZURE_STORAGE_CONNECTION_STRING", {"x.txt": b"closed"})


async def test_a_signature_of_the_config_is_used(server: AzureServer) -> None:
    """With the question mark that portals put before it."""
    token = f"?{server.signature(PRIVATE)}"

    given = settings(account=ACCOUNT, sas_token=token, endpoint_url=server.url)
    used, found = await credential_and_contents(f"az://{PRIVATE}/closed/x.txt", given)
    assert (used, found) == ("sas_token of storage.credentials.azure", {"x.txt": b"closed"})


async def test_a_public_container_needs_no_credential(server: AzureServer) -> None:
    """Nor is one made up."""
    given = settings(account=ACCOUNT, anonymous=True, endpoint_url=server.url)

    assert await credential_and_contents(f"az://{CONTAINER}/open", given) == ("anonymous", {"x.txt": b"open"})


@pytest.mark.parametrize(
    "block",
    [
        {"anonymous": True},
        {"account_key": "c2VjcmV0LXZhbHVl"},
        {"sas_token": "sv=2021-12-02&sr=c&sp=rl&se=2099-01-01T00:00:00Z&sig=c2VjcmV0LXZhbHVl"},
    ],
    ids=["anonymous", "wrong key", "wrong signature"],
)
async def test_who_may_not_read_is_told_what_to_set(server: AzureServer, block: dict[str, object]) -> None:
    """Azure says 404 for what strangers may not know of; no secret is shown."""
    given = settings(account=ACCOUNT, endpoint_url=server.url, **block)

    with pytest.raises((AccessDeniedError, ArtifactNotFoundError), match="set AZURE_STORAGE_ACCESS_KEY") as caught:
        await listed(f"az://{PRIVATE}/closed", given)
    assert "c2VjcmV0LXZhbHVl" not in str(caught.value)


def test_a_key_that_is_none_is_told() -> None:
    """Half of one, say."""
    with pytest.raises(StorageError, match="its key is invalid"):
        AzureStore(f"https://{HOST}/models/x", settings(account_key="not base64!"))


async def test_a_small_blob_has_its_md5(server: AzureServer) -> None:
    """Azure keeps the one that whoever uploads gives, or its own of small ones."""
    given = settings(account=ACCOUNT, account_key=KEY, endpoint_url=server.url)

    (file,) = (await listed(f"az://{CONTAINER}/open", given)).files
    assert file.digests == {"md5": "7cef8a734855777c2a9d0caf42666e69"}


async def test_options_go_over_the_config(server: AzureServer) -> None:
    """Those of adlfs, by their own names."""
    given = settings(account=ACCOUNT, account_key="c2VjcmV0", endpoint_url=server.url)
    options = {"connection_string": server.connection_string}

    store = AzureStore(f"az://{PRIVATE}/closed", given, options)
    try:
        assert [file.name for file in (await store.list()).files] == ["x.txt"]
        assert store.credential.startswith("connection_string of ")
    finally:
        await store.close()


def test_half_a_credential_in_options_is_told_without_it() -> None:
    """Its secret is in no message."""
    with pytest.raises(StorageError, match="no credential of Azure") as caught:
        AzureStore(f"https://{HOST}/models/x", settings(), {"client_secret": "s3cret"})
    assert "s3cret" not in str(caught.value)
