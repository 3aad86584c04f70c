"""The networks of companies, for every store that speaks HTTP: proxies, and certificates of their own authorities."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from storage.filesystems.test_contract import contents, listed
from storage.servers import web
from storage.servers.proxies import ProxyServer, TlsFront
from storage.store_servers import StoreServer

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import MissingExtraError, StorageError

Environment = pytest.MonkeyPatch

KINDS = ("s3", "gs", "az", "http", "hf")
FILES = {"model/config.json": b"{}", "model/model.safetensors": bytes(range(256)) * 400}
MODEL = {name.removeprefix("model/"): data for name, data in FILES.items()}

every_store = pytest.mark.parametrize("store_server", KINDS, indirect=True)


@pytest.fixture
def proxied(only_given_credentials: Environment) -> Environment:
    """An environment without proxies, in which the loopback is no exception."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        only_given_credentials.delenv(name, raising=False)
        only_given_credentials.delenv(name.upper(), raising=False)
    return only_given_credentials


@pytest.fixture
def company_proxy() -> Iterator[ProxyServer]:
    """A proxy."""
    with ProxyServer() as server:
        yield server


@every_store
@pytest.mark.parametrize(
    ("variable", "scheme"), [("http_proxy", "http"), ("ALL_PROXY", "http"), ("ALL_PROXY", "socks5h")]
)
async def test_every_store_is_reached_through_the_users_proxy(
    store_server: StoreServer, root: str, proxied: Environment, company_proxy: ProxyServer, variable: str, scheme: str
) -> None:
    """Its own library knows the proxies of one scheme at most."""
    if scheme == "socks5h":
        pytest.importorskip("python_socks")
    store_server.fill(root, FILES)
    proxied.setenv(variable, f"{scheme}://127.0.0.1:{company_proxy.port}")

    assert await contents(store_server.uri(f"{root}/model/"), store_server.settings()) == MODEL
    assert set(company_proxy.targets) == {f"127.0.0.1:{store_server.port}"}


@every_store
async def test_networks_in_no_proxy_are_reached_directly(
    store_server: StoreServer, root: str, proxied: Environment
) -> None:
    """As curl reads them, and most libraries do not."""
    store_server.fill(root, FILES)
    proxied.setenv("ALL_PROXY", "http://127.0.0.1:9")
    proxied.setenv("NO_PROXY", "10.0.0.0/8,127.0.0.0/8")

    assert await contents(store_server.uri(f"{root}/model/"), store_server.settings()) == MODEL


@every_store
async def test_a_malformed_proxy_is_named_by_its_variable(store_server: StoreServer, proxied: Environment) -> None:
    """No traceback, and no password that is in it."""
    proxied.setenv("http_proxy", "http://me:s3cret@proxy.test:port")

    with pytest.raises(StorageError, match="http_proxy is not the address of a proxy; write it as") as caught:
        await listed(store_server.uri("root/model/"), store_server.settings())
    assert "s3cret" not in str(caught.value)


@every_store
async def test_a_socks_proxy_without_its_package_is_told(store_server: StoreServer, proxied: Environment) -> None:
    """With the variable, and the extra to install."""
    proxied.setenv("http_proxy", "socks5://127.0.0.1:9")
    proxied.setitem(sys.modules, "python_socks", None)

    with pytest.raises(MissingExtraError, match=r"SOCKS proxy in http_proxy needs .*appliance\[socks\]"):
        await listed(store_server.uri("root/model/"), store_server.settings())


@pytest.mark.parametrize(
    ("uri", "credentials"),
    [
        (
            "s3://models/model",
            {"s3": [{"access_key_id": "s3cret", "secret_access_key": "s3cret", "session_token": "s3cret"}]},
        ),
        ("az://models/model", {"azure": [{"account": "account", "account_key": "czNjcmV0"}]}),
        ("hf://owner/model", {"hf": [{"token": "s3cret"}]}),
    ],
)
async def test_no_credential_goes_where_a_store_redirects(
    uri: str, credentials: dict[str, list[dict[str, str]]], tmp_path: Path, only_given_credentials: Environment
) -> None:
    """Whatever header it is in."""
    with web.own(tmp_path / "store") as store, web.own(tmp_path / "other") as other:
        store.leads_to = other.url
        block = {**next(iter(credentials.values()))[0], "endpoint_url": store.url}
        settings = GlobalStorageConfig.model_validate(
            {"credentials": {next(iter(credentials)): [block]}, "transfer": {"retries": 0}}
        )

        with pytest.raises(StorageError):
            await listed(uri, settings)
    assert store.seen
    assert "s3cret" in str(store.seen) or uri.startswith("az:")
    assert "s3cret" not in str(other.seen)
    assert not any("Authorization" in headers or "X-Ms-" in str(headers) for headers in other.seen)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of its certificate."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return file


@pytest.fixture
def front(store_server: StoreServer, authority: trustme.CA) -> Iterator[TlsFront]:
    """The store with TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with TlsFront(store_server.port, context) as front:
        yield front


async def test_no_credential_is_sent_in_the_clear_because_of_a_redirect(
    authority: trustme.CA, ca_file: Path, tmp_path: Path, proxied: Environment
) -> None:
    """Also to a host that would get it over TLS, and from `.netrc`."""
    (tmp_path / "netrc").write_text("default login me password s3cret\n")
    proxied.setenv("NETRC", str(tmp_path / "netrc"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    block = {"host": "127.0.0.1", "headers": {"X-Api-Key": "s3cret"}, "ca_file": ca_file}
    settings = GlobalStorageConfig.model_validate({"credentials": {"http": [block]}})
    with web.own(tmp_path / "first") as first, web.own(tmp_path / "plain") as plain:
        first.leads_to = plain.url
        plain.put("model.gguf", b"GGUF")

        with TlsFront(first.port, context) as front:
            assert await contents(f"https://127.0.0.1:{front.port}/model.gguf", settings) == {"model.gguf": b"GGUF"}
    assert {"X-Api-Key", "Authorization"} <= first.seen[0].keys()
    assert not any({"X-Api-Key", "Authorization"} & headers.keys() for headers in plain.seen)


def with_tls(store_server: StoreServer, port: int, ca_file: Path | None) -> GlobalStorageConfig:
    """Settings that reach the store with TLS, with the file of an authority in each block of credentials."""
    credentials = json.loads(json.dumps(store_server.locate("root", port)[1]).replace("http://", "https://"))
    if ca_file is not None:
        blocks = credentials or {"http": [{"host": "127.0.0.1"}]}
        credentials = {kind: [{**block, "ca_file": str(ca_file)} for block in found] for kind, found in blocks.items()}
    return GlobalStorageConfig.model_validate({"credentials": credentials, "transfer": {"retries": 0}})


@every_store
@pytest.mark.parametrize("source", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "ca_file"])
async def test_every_store_is_trusted_by_a_private_authority(
    store_server: StoreServer, root: str, front: TlsFront, ca_file: Path, proxied: Environment, source: str
) -> None:
    """That of a variable, or of the credentials."""
    store_server.fill(root, FILES)
    if source != "ca_file":
        proxied.setenv(source, str(ca_file))

    settings = with_tls(store_server, front.port, ca_file if source == "ca_file" else None)
    uri = store_server.uri(f"{root}/model/", front.port).replace("http://", "https://")
    assert await contents(uri, settings) == MODEL


@every_store
@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_store_with_tls_is_reached_through_a_tunnel(
    store_server: StoreServer,
    root: str,
    front: TlsFront,
    ca_file: Path,
    proxied: Environment,
    company_proxy: ProxyServer,
    scheme: str,
) -> None:
    """The proxy sees its own login, and nothing that is for the store."""
    store_server.fill(root, FILES)
    login = "me:s%40cret@" if scheme == "http" else ""
    proxied.setenv("HTTPS_PROXY", f"{scheme}://{login}127.0.0.1:{company_proxy.port}")

    uri = store_server.uri(f"{root}/model/", front.port).replace("http://", "https://")
    assert await contents(uri, with_tls(store_server, front.port, ca_file)) == MODEL
    assert set(company_proxy.targets) == {f"127.0.0.1:{front.port}"}
    assert company_proxy.logins == ({"Basic bWU6c0BjcmV0"} if login else set())


@every_store
async def test_an_authority_that_is_not_trusted_is_told_with_its_remedy(
    store_server: StoreServer, front: TlsFront, proxied: Environment
) -> None:
    """The variable, and the key of the credentials."""
    uri = store_server.uri("root/model/", front.port).replace("http://", "https://")

    with pytest.raises(StorageError, match=r"certificate verify failed.*SSL_CERT_FILE.*ca_file"):
        await listed(uri, with_tls(store_server, front.port, None))


@every_store
async def test_a_file_without_certificates_is_told(
    store_server: StoreServer, front: TlsFront, tmp_path: Path, proxied: Environment
) -> None:
    """By the variable that names it."""
    proxied.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    uri = store_server.uri("root/model/", front.port).replace("http://", "https://")

    with pytest.raises(StorageError, match=r"REQUESTS_CA_BUNDLE is .*none\.pem, .*name a PEM file"):
        await listed(uri, with_tls(store_server, front.port, None))
