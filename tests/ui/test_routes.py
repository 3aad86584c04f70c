"""What the root answers, to people and to programs, and what it shows of the config."""

from __future__ import annotations

import re
from typing import Any, cast

import httpx
import pytest
from doubles import DoubleFactory
from httpx import ASGITransport
from ruamel.yaml import YAML

from appliance.config import Config
from appliance.server import create_app
from appliance.ui.redacted_config import RedactedConfig

SECTION = {
    "name": "away",
    "class": "proxy",
    "upstreams": [{"url": "https://models.example.com/v1", "api_key": "sk-inline"}],
    "x-note": "ours",
}
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def _config(**server: object) -> Config:
    return Config.model_validate({"models": [SECTION], "server": server})


def _client(config: Config) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=ASGITransport(cast("Any", create_app(config, factory=DoubleFactory()))), base_url="http://test"
    )


async def test_a_browser_gets_the_page_and_a_program_the_routes() -> None:
    """The root answers each in its own language."""
    async with _client(_config()) as client:
        for_people = await client.get("/", headers=BROWSER)
        for_programs = await client.get("/")

    assert for_people.text.startswith("<!doctype html>")
    assert "script-src 'sha256-" in for_people.headers["content-security-policy"]
    assert "/v1/models" in for_programs.json()["routes"]


async def test_the_page_can_be_turned_off() -> None:
    """With `server.page: false` the root lists the routes to everyone, and the config is not shown."""
    async with _client(_config(page=False)) as client:
        root = await client.get("/", headers=BROWSER)
        statuses = [(await client.get(path, headers=BROWSER)).status_code for path in ("/config", "/docs", "/schema")]
        document = (await client.get("/schema/openapi.json")).json()

    assert root.json()["name"] == "appliance"
    assert statuses == [404, 404, 200]
    for listed in (root.json()["routes"], document["paths"]):
        assert {"/config", "/docs", "/schema"}.intersection(listed) == {"/schema"}


async def test_the_config_is_shown_as_it_was_set_without_its_secrets() -> None:
    """Secrets of the file, of references and in URIs are gone; what nobody set is left out."""
    config = Config.model_validate(
        {
            "models": [
                SECTION,
                {
                    "name": "here",
                    "class": "encoder",
                    "storage": {"uri": "https://u:pw@files.example.com/m.zip?sig=signed"},
                },
                {"name": "there", "class": "proxy", "upstreams": [{"url": "http://tenant-referenced.example.com"}]},
            ]
        }
    )

    text = RedactedConfig(config, {"referenced"}).as_yaml()
    shown = YAML(typ="safe").load(text)

    assert not re.search(r"inline|pw|signed|referenced", text)
    assert shown["models"][0]["upstreams"][0]["api_key"] == "***"
    assert list(shown["models"][0]) == ["name", "class", "upstreams"]
    assert shown["models"][1]["storage"] == {"uri": "https://files.example.com/m.zip"}
    assert "server" not in shown


@pytest.mark.parametrize("path", ["/", "/docs", "/schema"])
async def test_pages_work_offline(path: str) -> None:
    """A page has no address of another server, no import that was not resolved, and no placeholder."""
    async with _client(_config()) as client:
        text = (await client.get(path, headers=BROWSER)).text

    assert text.startswith("<!doctype html>")
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", text)
    assert not re.search(r"^(?:import|export) ", text, re.MULTILINE)
    assert "/* page." not in text


async def test_only_the_pages_themselves_are_public() -> None:
    """If there are keys, a browser gets a page to enter one; the config is for keys without limits."""
    keys = [{"name": "all", "value": "k" * 32}, {"name": "one", "value": "o" * 32, "models": ["away"]}]

    async with _client(_config(api_keys=keys)) as client:
        statuses = [
            (await client.get(path, headers={**headers, **key})).status_code
            for path, headers, key in (
                ("/", BROWSER, {}),
                ("/", {}, {}),
                ("/docs", BROWSER, {}),
                ("/docs", {}, {}),
                ("/schema", BROWSER, {}),
                ("/config", {}, {}),
                ("/config", {}, {"authorization": f"Bearer {'o' * 32}"}),
                ("/config", {}, {"authorization": f"Bearer {'k' * 32}"}),
            )
        ]

    assert statuses == [200, 401, 200, 401, 401, 401, 403, 200]
