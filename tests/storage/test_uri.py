"""Reading URIs without knowing their scheme."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.uri import hub_uri_of, scheme_of
from appliance.storage import redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pass@host/x", "https://host/x"),
        ("https://token@host:8080/x", "https://host:8080/x"),
        ("https://host/x?sig=abc&se=1", "https://host/x"),
        ("https://host/x?sig=abc#part", "https://host/x#part"),
        ("s3://KEY:se/cr+et@bucket/model", "s3://bucket/model"),
        ("https://user:p@ss@host/x", "https://host/x"),
        ("https://host:8080/model@v1", "https://host:8080/model@v1"),
        ("hf://owner/model@v1", "hf://owner/model@v1"),
        ("pypi://name==1/a", "pypi://name==1/a"),
        ("abfss://models@acct.dfs.core.windows.net/a?sig=x", "abfss://models@acct.dfs.core.windows.net/a"),
        ("abfs://models@me:s3cret@acct.dfs.core.windows.net/a", "abfs://acct.dfs.core.windows.net/a"),
        ("models/what?.gguf", "models/what?.gguf"),
        ("zip://a/b::s3://KEY:s3cret@bucket/x.zip", "zip://a/b::s3://bucket/x.zip"),
        ("zip::https://user:s3cret@host/x.zip?sig=s3cret", "zip::https://host/x.zip"),
        ('no answer of "https://host/x?list=2"; try again', 'no answer of "https://host/x"; try again'),
        ("get https://a:b@c/d?e=f: failed, as ftp://g:h@i did", "get https://c/d failed, as ftp://i did"),
    ],
)
def test_secrets_are_taken_out_of_uris_and_nothing_else(text: str, clean: str) -> None:
    """User names, passwords and query strings go, wherever in a text the URI stands; the rest stays."""
    assert redact(text) == clean


@given(st.text("abcXYZ019+/=@:!$&*", min_size=1).map(lambda tail: f"s3cret{tail}"))
def test_no_pasted_password_survives(password: str) -> None:
    """A password is removed also when its special characters are not percent-encoded."""
    assert "s3cret" not in redact(f"https://user:{password}@host/path")


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("pypi://a==1", "pypi"),
        ("FILE:///x", "file"),
        ("zip::s3://bucket/x.zip", "zip"),
        ("zip://a::simplecache::https://host/x", "zip"),
        ("runs::monday", None),
        ("file:/x", "file"),
        ("/x/y", None),
        ("x/y", None),
        ("~/x", None),
        ("runs/monday:9", None),
        ("C:model", None),
    ],
)
def test_a_scheme_is_told_from_a_path(uri: str, scheme: str | None) -> None:
    """Only what stands before `://` is a scheme, and `file:/`; a colon alone makes none."""
    assert scheme_of(uri) == scheme


@pytest.mark.parametrize(
    ("page", "uri"),
    [
        ("https://huggingface.co/owner/name", "hf://owner/name"),
        ("https://www.huggingface.co/owner/name/", "hf://owner/name"),
        ("https://hf.co/owner/name/tree/main", "hf://owner/name"),
        ("https://huggingface.co/owner/name/tree/v1/sub/dir/", "hf://owner/name@v1/sub/dir"),
        ("https://huggingface.co/owner/name/blob/main/a%20b.gguf?download=true", "hf://owner/name/a%20b.gguf"),
        ("https://mirror.test:8443/owner/name", "hf://owner/name"),
        ("https://huggingface.co/owner/name/resolve/main/model.gguf", None),
        ("https://huggingface.co/datasets/owner/name", None),
        ("https://huggingface.co/docs/hub", None),
        ("https://files.test/owner/name", None),
        ("https://huggingface.co/name", None),
    ],
)
def test_the_page_of_a_model_is_told_from_its_files(page: str, uri: str | None) -> None:
    """On the hub, and on the mirror that the user has set."""
    assert hub_uri_of(page, "https://me:s3cret@mirror.test:8443/prefix") == uri
