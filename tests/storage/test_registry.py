"""The table of schemes."""

from __future__ import annotations

import pytest

from appliance.config.storage import SCHEMES, GlobalStorageConfig, StorageConfig
from appliance.core.errors import StorageError
from appliance.storage import Cache, materialize
from appliance.storage.filesystems.registry import FILESYSTEMS


def test_an_unknown_scheme_names_the_known_ones(cache: Cache) -> None:
    """Who writes a scheme we do not have learns which there are."""
    with pytest.raises(StorageError) as caught:
        materialize(
            StorageConfig(uri="gopher://host/model"), GlobalStorageConfig(cache_dir=cache.root), lambda *_: None
        )

    assert "unknown scheme 'gopher'" in str(caught.value)
    assert all(scheme in str(caught.value) for scheme in SCHEMES)


def test_a_misspelt_scheme_is_guessed(cache: Cache) -> None:
    """A scheme that is nearly right gets a did-you-mean."""
    with pytest.raises(StorageError, match='did you mean "pypi"'):
        materialize(StorageConfig(uri="pypy://model==1/x"), GlobalStorageConfig(cache_dir=cache.root), lambda *_: None)


def test_an_unknown_scheme_shows_no_secret(cache: Cache) -> None:
    """The message of a bad URI is fit for a log."""
    with pytest.raises(StorageError) as caught:
        materialize(
            StorageConfig(uri="gopher://me:s3cret@host/model?key=s3cret"),
            GlobalStorageConfig(cache_dir=cache.root),
            lambda *_: None,
        )

    assert "s3cret" not in str(caught.value)


def test_the_config_knows_each_scheme() -> None:
    """The names that a config may have are those of the table."""
    assert set(FILESYSTEMS) - {"memory"} == SCHEMES
