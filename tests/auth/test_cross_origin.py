"""Pages in a browser neither use nor read a server that has no keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import http2
import pytest
from auth_doubles import FULL_KEY, AppClient, RecordingDoubleConfig, bearer_header, config_with_keys
from doubles import config
from server_process import free_port

from appliance.config.root import MetadataConfig
from appliance.config.server import ServerConfig
from appliance.models.health import ConfigStatus
from appliance.server.listener import Listener

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
METADATA = MetadataConfig(name="talk", namespace="shop")
UNLOAD = "/v2/repository/models/one/unload"

LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
IMAGE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}


def keyless(host: str = LOOPBACK, **server: Any) -> AppClient:  # Any: keys of the section
    """A client of an application that wants no key."""
    return AppClient(
        config(RecordingDoubleConfig(name="one"), server=ServerConfig(host=host, **server), metadata=METADATA)
    )


@pytest.fixture(scope="module")
async def loopback_app() -> AsyncGenerator[AppClient]:
    """One that listens on the loopback."""
    async with keyless(admin=True) as client:
        yield await _ready(client)
        await client.manager.stop()


@pytest.fixture(scope="module")
async def network_app() -> AsyncGenerator[AppClient]:
    """One that listens on all interfaces."""
    async with keyless(EVERYWHERE) as client:
        yield await _ready(client)
        await client.manager.stop()


async def _ready(client: AppClient) -> AppClient:
    await client.wait_until_ready()
    return client


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://evil.example:8080"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://127.0.0.1:8080.evil.example"},
        {"Origin": "http://user@127.0.0.1:8080"},
        {"Origin": "file://"},
        {"Origin": ""},
        IMAGE,
        {**IMAGE, "sec-fetch-site": "same-site"},
    ],
)
async def test_pages_of_other_origins_do_nothing(
    headers: dict[str, str], loopback_app: AppClient, network_app: AppClient
) -> None:
    """A form that unloads, a request that costs and a look at the models are 403, and change nothing."""
    headers = {"Host": "127.0.0.1:8080", **headers}
    form = await loopback_app.post(UNLOAD, data={"a": "b"}, headers=headers)
    asked = await network_app.post("/v1/completions", json={"model": "one"}, headers=headers)
    tensors = await loopback_app.post("/v2/models/one/infer", json={}, headers=headers)
    seen = await network_app.get("/v1/models", headers=headers)

    assert [each.status_code for each in (form, asked, tensors, seen)] == [403] * 4
    assert asked.json()["error"]["type"] == "permission_error"
    assert isinstance(tensors.json()["error"], str)
    assert loopback_app.manager.statuses[0].state == "ready"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"},
        {"Host": "localhost:8080", "Origin": "http://localhost:8080"},
        {"Host": "[::1]:8080", "Origin": "http://[::1]:8080"},
        {"Host": "appliance", "Origin": "http://appliance"},
        {"Host": "appliance:80", "Origin": "http://appliance"},
        {"Host": "chat.example.com", "Origin": "https://chat.example.com", "sec-fetch-site": "same-origin"},
    ],
)
async def test_programs_and_its_own_page_ask(headers: dict[str, str], loopback_app: AppClient) -> None:
    """Programs send no origin, and the page at `/` its own, with or without TLS in front of the server."""
    asked = await loopback_app.post("/v1/completions", json={"model": "one"}, headers=headers)
    shown = await loopback_app.get("/config", headers=headers)

    assert (asked.status_code, shown.status_code) == (200, 200)


async def test_a_link_leads_to_the_page(loopback_app: AppClient) -> None:
    """From another site too; the page's own requests are of its own origin."""
    assert (await loopback_app.get("/", headers={**LINK, "Accept": "text/html"})).status_code == 200
    assert (await loopback_app.get("/schema", headers=LINK)).status_code == 200


async def test_pages_that_cors_names_ask() -> None:
    """As before, and no others."""
    page = "https://chat.example.com"
    async with keyless(cors={"origins": [page]}) as client:
        named = await client.get("/v1/models", headers={"Host": "localhost", "Origin": page})
        other = await client.get("/v1/models", headers={"Host": "localhost", "Origin": "https://evil.example"})
    async with keyless(cors={"origins": ["*"]}) as client:
        anyone = await client.get("/v1/models", headers={"Host": "localhost", "Origin": "https://evil.example"})

    assert (named.status_code, other.status_code, anyone.status_code) == (200, 403, 200)
    assert named.headers["access-control-allow-origin"] == page
    assert "access-control-allow-origin" not in other.headers


NAMES: Mapping[str, tuple[int, int, int]] = {
    # Host: GET /v1/models on the loopback, on all interfaces, and /config on all interfaces
    "127.0.0.1": (200, 200, 200),
    "127.0.0.1:8080": (200, 200, 200),
    "[::1]:8080": (200, 200, 200),
    "10.1.2.3:8080": (200, 200, 200),
    "localhost:8080": (200, 200, 200),
    "LOCALHOST.:8080": (200, 200, 200),
    "app.localhost": (200, 200, 200),
    "appliance:8080": (200, 200, 200),
    "appliance.shop.svc:8080": (200, 200, 200),
    "appliance.shop.svc.cluster.local": (200, 200, 200),
    "host.docker.internal:8080": (200, 200, 200),
    "": (200, 200, 200),
    "appliance.shop:8080": (403, 200, 403),
    "evil.example": (403, 200, 403),
    "evil.example:8080": (403, 200, 403),
    "127.0.0.1.evil.example": (403, 200, 403),
    "localhost.evil.example": (403, 200, 403),
    "localhost@evil.example": (403, 200, 403),
    "evil.example:port": (403, 200, 403),
}


@pytest.mark.parametrize("host", NAMES)
async def test_names_that_may_be_rebound_are_refused(
    host: str, loopback_app: AppClient, network_app: AppClient
) -> None:
    """Where the loopback listens for everyone; elsewhere for pages and for the config, as programs use any name."""
    headers = {"Host": host, "X-Forwarded-Host": "localhost"}
    local = await loopback_app.get("/v1/models", headers=headers)
    below = await loopback_app.get("/shop/talk/v1/models", headers=headers)
    probes = [(await loopback_app.get(path, headers=headers)).status_code for path in ("/livez", "/v2/health/live")]
    remote = await network_app.get("/v1/models", headers=headers)
    paths = ("/config", "http://appliance//config/", "/shop/talk/config", "/publishers/shop/models/one/config")
    shown = {(await network_app.get(path, headers=headers)).status_code for path in paths}
    page = await network_app.get("/v1/models", headers={**headers, "Origin": f"http://{host}"})

    wanted = NAMES[host]
    assert (local.status_code, remote.status_code, shown) == (wanted[0], wanted[1], {wanted[2]})
    assert below.status_code == wanted[0]
    assert probes == [200, 200]
    assert page.status_code == 403 or wanted[2] == 200
    if wanted[0] == 403:
        assert "server.allowed_hosts" in local.json()["error"]["message"]


PROBES = ("/livez", "/readyz", "/health", "/ping", "/startupz", "/readyz/", "/shop/talk/readyz")


@pytest.mark.parametrize("path", PROBES)
async def test_probes_tell_foreign_pages_their_status_alone(
    path: str, loopback_app: AppClient, network_app: AppClient
) -> None:
    """A page whose name was pointed here reads neither models, nor upstreams, nor what is known of the file."""
    for client in (loopback_app, network_app):
        client.manager.config_status = ConfigStatus("digest", "now")
        for headers in ({"Host": "evil.example"}, {"Host": "localhost", "Origin": "https://evil.example"}):
            foreign = await client.get(path, headers=headers)
            assert (foreign.status_code, sorted(foreign.json()), foreign.json()["models"]) == (
                200,
                ["models", "status"],
                [],
            )
        own = (await client.get(path, headers={"Host": "10.1.2.3:8080"})).json()
        client.manager.config_status = None

        assert [model["name"] for model in own["models"]] == ["one"]
        assert "config" in own


@pytest.mark.parametrize("where", [LOOPBACK, EVERYWHERE])
@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("chat.example.com", "chat.example.com:8080", 200),
        ("Chat.Example.com", "CHAT.example.com", 200),
        ("*.example.com", "a.b.example.com", 200),
        ("*.example.com", "example.com", 403),
        ("*.example.com", "evilexample.com", 403),
        ("chat.example.com", "evil.example", 403),
        ("chat.example.com", "10.1.2.3", 200),
        ("*", "evil.example", 200),
    ],
)
async def test_the_config_names_hosts(where: str, allowed: str, host: str, status: int) -> None:
    """Named hosts are served, and once some are named no others are."""
    async with keyless(where, allowed_hosts=[allowed]) as client:
        assert (await client.get("/v1/models", headers={"Host": host})).status_code == status


async def test_keys_do_what_names_and_origins_do() -> None:
    """With keys every name is good: no page has one."""
    headers = {"Host": "evil.example", "Origin": "https://other.example", **bearer_header(FULL_KEY)}
    async with AppClient(config_with_keys(host=LOOPBACK)) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=a", 415),
        ("text/plain;charset=UTF-8", 415),
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        (None, 200),
    ],
)
async def test_what_changes_state_wants_json(media_type: str | None, status: int) -> None:
    """Every type that a page can send without asking first is 415."""
    async with keyless(admin=True) as client:
        await client.wait_until_ready()
        headers = {} if media_type is None else {"Content-Type": media_type}
        answer = await client.post(UNLOAD, content=b"{}", headers=headers)
        await client.manager.stop()

    assert answer.status_code == status


async def test_the_authority_of_http_2_is_its_host() -> None:
    """The name counts whichever version of HTTP carries it."""
    async with keyless() as client:
        port = free_port()
        listener = Listener(client.app, LOOPBACK, port, None)
        serving = asyncio.create_task(listener.serve())
        bodies = [await asyncio.to_thread(_answer, port, name) for name in ("localhost", "evil.example")]
        listener.stop()
        await serving

    assert b"server.allowed_hosts" not in bodies[0]
    assert b"server.allowed_hosts" in bodies[1]


def _answer(port: int, authority: str) -> bytes:
    for _ in range(400):
        try:
            with http2.ask(port, "/v1/completions", {"model": "nobody"}, authority) as connection:
                return b"".join(payload for kind, payload in http2.frames(connection) if kind == http2.DATA)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")
