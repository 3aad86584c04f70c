"""The table of schemes."""

from __future__ import annotations

import pytest

from appliance.config.storage import GlobalStorageConfig, StorageConfig
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
    assert all(scheme in str(caught.value) for scheme in FILESYSTEMS)


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


def test_a_misspelt_scheme_of_fsspec_is_guessed(cache: Cache) -> None:
    """Those that need no row here count as well."""
    with pytest.raises(StorageError, match='did you mean "webhdfs"'):
        materialize(StorageConfig(uri="webhdf://host/x"), GlobalStorageConfig(cache_dir=cache.root), lambda *_: None)
