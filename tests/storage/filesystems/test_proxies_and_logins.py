"""The user's proxies and logins, which hold for every request on the web."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage.filesystems.test_contract import contents, opened
from storage.servers import web
from storage.servers.web import WebServer

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import AccessDeniedError

Environment = pytest.MonkeyPatch

MODEL = {"model.gguf": b"GGUF"}


def basic(login: str) -> str:
    """The header's value for a name and a password."""
    return f"Basic {base64.b64encode(login.encode()).decode()}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    """A server with one file, which it has for all hosts, as a proxy would."""
    with web.own(tmp_path / "web") as server:
        server.put("model.gguf", b"GGUF")
        yield server


async def test_the_users_proxy_is_asked(server: WebServer, only_given_credentials: Environment) -> None:
    """For hosts that only it can reach, and with the login in its address."""
    only_given_credentials.setenv("http_proxy", f"http://me:s%40cret@127.0.0.1:{server.port}")
    server.wants = {"Host": "models.test", "Proxy-Authorization": basic("me:s@cret")}

    assert await contents("http://models.test/model.gguf", GlobalStorageConfig()) == MODEL


async def test_what_no_proxy_names_is_reached_directly(server: WebServer, only_given_credentials: Environment) -> None:
    """A proxy that is not there does no harm then."""
    only_given_credentials.setenv("http_proxy", "http://127.0.0.1:9")
    only_given_credentials.setenv("no_proxy", "127.0.0.1")

    assert await contents(f"{server.url}/model.gguf", GlobalStorageConfig()) == MODEL


async def test_a_login_of_netrc_does_not_replace_a_header(
    server: WebServer, tmp_path: Path, only_given_credentials: Environment
) -> None:
    """That of the config goes before it; aiohttp refuses to send both."""
    logins = tmp_path / "netrc"
    logins.write_text("default login me password s3cret\n")
    only_given_credentials.setenv("NETRC", str(logins))
    server.wants = {"Authorization": "Bearer t0ken", "X-More": "1"}
    block = {"host": "127.0.0.1", "headers": server.wants}

    settings = GlobalStorageConfig.model_validate({"credentials": {"http": [block]}})
    assert await contents(f"{server.url}/model.gguf", settings) == MODEL


async def test_a_login_of_netrc_is_for_its_host(
    server: WebServer, tmp_path: Path, only_given_credentials: Environment
) -> None:
    """Also where a redirect leads: there the login of that host is used, and no other."""
    logins = tmp_path / "netrc"
    logins.write_text("machine 127.0.0.1 login me password s3cret\nmachine localhost login you password other\n")
    only_given_credentials.setenv("NETRC", str(logins))
    only_given_credentials.setenv("NO_PROXY", "127.0.0.1,localhost")
    with web.own(tmp_path / "first") as first:
        first.wants = {"Authorization": basic("me:s3cret")}
        first.leads_to = f"http://localhost:{server.port}"
        server.wants = {"Authorization": basic("you:other")}

        assert await contents(f"{first.url}/model.gguf", GlobalStorageConfig()) == MODEL


async def test_a_login_of_the_users_netrc_is_used(
    server: WebServer, tmp_path: Path, only_given_credentials: Environment
) -> None:
    """As other tools do; what the URI says goes before it."""
    logins = tmp_path / "netrc"
    logins.write_text("machine 127.0.0.1 login me password s3cret\n")
    only_given_credentials.setenv("NETRC", str(logins))
    server.wants = {"Authorization": basic("me:s3cret")}

    assert await contents(f"{server.url}/model.gguf", GlobalStorageConfig()) == MODEL
    uri = f"http://you:other@127.0.0.1:{server.port}/model.gguf"
    async with opened(uri, GlobalStorageConfig()) as store:
        with pytest.raises(AccessDeniedError, match="the user in the URI"):
            await store.list()
