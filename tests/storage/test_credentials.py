"""The section `storage.credentials`: what can be written, and what never comes out."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from appliance.config.credentials import CredentialsConfig, block_for, value_of

WHOLE = [
    ("s3", {"access_key_id": "a", "secret_access_key": "b"}),
    ("s3", {"access_key_id": "a", "secret_access_key": "b", "session_token": "c", "region": "r"}),
    ("s3", {"profile": "work"}),
    ("s3", {"endpoint_url": "http://127.0.0.1:9000"}),
    ("gcs", {"key": "{}"}),
    ("azure", {"account": "a", "account_key": "b"}),
    ("azure", {"tenant_id": "a", "client_id": "b", "client_secret": "c"}),
    ("azure", {"managed_identity": True, "client_id": "b"}),
    ("hf", {"token": "t"}),
    ("http", {"host": "example.com", "headers": {"Authorization": "Bearer x"}}),
]

BROKEN = [
    ("s3", {"access_key_id": "a"}, "gives access_key_id without secret_access_key"),
    ("s3", {"session_token": "c"}, "gives session_token without access_key_id"),
    ("s3", {"access_key_id": "a", "secret_access_key": "b", "anonymous": True}, "give only one of them"),
    ("s3", {"profile": "work", "anonymous": True}, "gives profile and anonymous; give only one"),
    ("s3", {"endpoint_url": "127.0.0.1:9000"}, "pattern"),
    ("gcs", {"key": "{}", "key_file": "x"}, "give only one of them"),
    ("azure", {"account_key": "b", "sas_token": "c"}, "give only one of them"),
    ("azure", {"client_secret": "c"}, "gives client_secret without tenant_id"),
    ("azure", {"client_secret": "c", "tenant_id": "a"}, "gives client_secret without client_id"),
    ("http", {"host": "example.com", "headers": {"Bad Name": "x"}}, "pattern"),
    ("http", {"host": "example.com", "headers": {"X": "a\nHost: evil"}}, "a line break"),
    ("http", {"headers": {"X": "y"}}, "required"),
]


@pytest.mark.parametrize(("kind", "block"), WHOLE)
def test_each_way_to_be_known_can_be_written(kind: str, block: dict[str, object]) -> None:
    """Alone, with whatever belongs to it."""
    config = CredentialsConfig.model_validate({kind: [block]})

    assert getattr(config, kind)


@pytest.mark.parametrize(("kind", "block", "fault"), BROKEN)
def test_half_a_way_and_two_ways_are_refused(kind: str, block: dict[str, object], fault: str) -> None:
    """With what is missing, or what is too much."""
    with pytest.raises(ValidationError, match=fault):
        CredentialsConfig.model_validate({kind: [block]})


def test_no_secret_is_shown() -> None:
    """Neither in what a section looks like, nor in what it is written as."""
    blocks = {
        "s3": [{"access_key_id": "s3cret", "secret_access_key": "s3cret", "session_token": "s3cret"}],
        "gcs": [{"key": "s3cret"}],
        "azure": [{"connection_string": "s3cret"}, {"account_key": "s3cret"}, {"sas_token": "s3cret"}],
        "hf": [{"token": "s3cret"}],
        "http": [{"host": "example.com", "headers": {"Authorization": "s3cret"}}],
    }
    config = CredentialsConfig.model_validate(blocks)

    assert "s3cret" not in repr(config) + str(config) + config.model_dump_json()


def test_a_block_by_name_goes_before_one_for_all() -> None:
    """Whatever their order; a block for somebody else is for nobody here."""
    config = CredentialsConfig.model_validate({"hf": [{"token": "all"}, {"owner": "me", "token": "mine"}]})

    found = {owner: block_for(config.hf, "owner", owner) for owner in ("me", "you")}
    assert {owner: block and value_of(block.token) for owner, block in found.items()} == {"me": "mine", "you": "all"}
    assert block_for(config.hf[1:], "owner", "you") is None
