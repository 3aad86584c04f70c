"""Addresses of servers."""

from __future__ import annotations

import pytest

from appliance.core.http import address_of, has_valid_address


def test_an_address_is_host_and_port() -> None:
    """A path and a query can hold keys."""
    assert address_of("https://api.example/secret/v1?key=secret") == "api.example"
    assert address_of("http://[::1]:81/v1") == "[::1]:81"


@pytest.mark.parametrize(("url", "is_valid"), [("http://a:80", True), ("http://a:99999", False), ("http://:80", False)])
def test_an_address_has_a_host_and_a_port_that_exists(url: str, is_valid: bool) -> None:
    """A pattern cannot check either."""
    assert has_valid_address(url) is is_valid
