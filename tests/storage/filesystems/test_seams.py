"""The private names of filesystems that the stores use: a new version that changes one fails here first."""

from __future__ import annotations

import inspect


def test_s3fs_has_what_the_store_uses() -> None:
    """Requests with conditions and checksums, retries that can be switched off, and a client that can be closed."""
    from s3fs import S3FileSystem

    assert list(inspect.signature(S3FileSystem._call_s3).parameters) == ["self", "method", "akwarglist", "kwargs"]
    assert S3FileSystem.retries > 1
    filesystem = S3FileSystem(skip_instance_cache=True)
    assert filesystem._s3 is None
    assert filesystem.split_path("s3://bucket/a/b.txt") == ("bucket", "a/b.txt", None)
    assert "_s3creator" in inspect.getsource(S3FileSystem.set_session)
