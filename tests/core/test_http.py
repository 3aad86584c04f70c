"""Addresses of servers."""

from __future__ import annotations

import pytest
from yarl import URL

from appliance.core.http import EnvironmentProxy, address_of, environment_proxy, has_valid_address


def test_an_address_is_host_and_port() -> None:
    """A path and a query can hold keys."""
    assert address_of("https://api.example/secret/v1?key=secret") == "api.example"
    assert address_of("http://[::1]:81/v1") == "[::1]:81"


@pytest.mark.parametrize(("url", "is_valid"), [("http://a:80", True), ("http://a:99999", False), ("http://:80", False)])
def test_an_address_has_a_host_and_a_port_that_exists(url: str, is_valid: bool) -> None:
    """A pattern cannot check either."""
    assert has_valid_address(url) is is_valid


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variable", "value", "proxy"),
    [
        ("HTTPS_PROXY", "http://proxy.test:3128", "http://proxy.test:3128"),
        ("https_proxy", "proxy.test:3128", "http://proxy.test:3128"),
        ("ALL_PROXY", "socks5h://proxy.test:1080/", "socks5h://proxy.test:1080"),
        ("http_proxy", "http://proxy.test:3128", None),
    ],
)
def test_a_proxy_is_named_with_its_variable(
    environment: pytest.MonkeyPatch, variable: str, value: str, proxy: str | None
) -> None:
    """The variable of the scheme, or that of all schemes."""
    environment.setenv(variable, value)

    found = environment_proxy(URL("https://models.test"))
    assert (found and (found.variable, str(found.url))) == (proxy and (variable, proxy))


def test_the_login_of_a_proxy_is_apart_from_its_address(environment: pytest.MonkeyPatch) -> None:
    """Decoded, as it goes into a header."""
    environment.setenv("HTTPS_PROXY", "http://me:s%40cret@proxy.test:3128")

    assert environment_proxy(URL("https://models.test")) == EnvironmentProxy(
        "HTTPS_PROXY", URL("http://proxy.test:3128"), "me", "s@cret"
    )


@pytest.mark.parametrize("value", ["http://", "http://me:s3cret@proxy.test:port", "socks://proxy.test", "ftp://x"])
def test_what_is_no_proxy_is_an_error_that_names_the_variable(environment: pytest.MonkeyPatch, value: str) -> None:
    """And not its value, which can hold a password."""
    environment.setenv("ALL_PROXY", value)

    with pytest.raises(ValueError, match="ALL_PROXY is not the address of a proxy; write it as http://HOST:PORT") as e:
        environment_proxy(URL("https://models.test"))
    assert "s3cret" not in str(e.value)


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("models.test", "https://models.test", True),
        (".test", "https://models.test", True),
        ("models.test:444", "https://models.test", False),
        ("10.0.0.0/8, 192.168.0.0/16", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8", "https://models.test", False),
        ("fd00::/8", "https://[fd00::1]:8443", True),
        ("*", "https://models.test", True),
    ],
)
def test_no_proxy_names_hosts_and_networks(
    environment: pytest.MonkeyPatch, no_proxy: str, url: str, is_direct: bool
) -> None:
    """As curl reads it."""
    environment.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    environment.setenv("NO_PROXY", no_proxy)

    assert (environment_proxy(URL(url)) is None) is is_direct
