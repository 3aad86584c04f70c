"""The private names of filesystems that the stores use: a new version that changes one fails here first."""

from __future__ import annotations

import inspect


def test_s3fs_has_what_the_store_uses() -> None:
    """Requests with conditions and checksums, retries that can be switched off, and a client that can be closed."""
    from aiobotocore.config import AioConfig
    from aiobotocore.httpsession import AIOHTTPSession
    from aiobotocore.response import AioStreamingBody
    from s3fs import S3FileSystem

    assert list(inspect.signature(S3FileSystem._call_s3).parameters) == ["self", "method", "akwarglist", "kwargs"]
    assert S3FileSystem.retries > 1
    filesystem = S3FileSystem(skip_instance_cache=True)
    assert filesystem._s3 is None
    assert filesystem.split_path("s3://bucket/a/b.txt") == ("bucket", "a/b.txt", None)
    assert isinstance(AioStreamingBody.raw_stream, property)
    assert list(inspect.signature(AIOHTTPSession._create_connector).parameters) == ["self", "proxy_url"]
    assert AioConfig(http_session_cls=AIOHTTPSession).http_session_cls is AIOHTTPSession
    assert "_s3creator" in inspect.getsource(S3FileSystem.set_session)


def test_gcsfs_has_what_the_store_uses() -> None:
    """Requests without retries, with the headers and parameters of its own, in its session."""
    from gcsfs.core import GCSFileSystem

    assert list(inspect.signature(GCSFileSystem._request.__wrapped__).parameters)[:3] == ["self", "method", "path"]
    filesystem = GCSFileSystem(token="anon", endpoint_url="http://127.0.0.1:9", skip_instance_cache=True)
    assert filesystem.session is None
    assert inspect.iscoroutinefunction(filesystem._set_session)
    assert filesystem.url("bucket/a b", generation="7").endswith("/b/bucket/o/a%20b?alt=media&generation=7")
    assert filesystem._get_params({}) == {}
    assert filesystem._get_headers({"Range": "bytes=0-0"})["Range"] == "bytes=0-0"


def test_gcsfs_never_refreshes_a_token_without_an_expiry() -> None:
    """It would do so in the I/O loop, and stop every download."""
    from gcsfs.core import GCSFileSystem
    from google.oauth2.credentials import Credentials

    token = Credentials("first")  # type: ignore[no-untyped-call] # google-auth has none here
    filesystem = GCSFileSystem(token=token, skip_instance_cache=True)
    token.token = "second"
    assert filesystem._get_headers({})["authorization"] == "Bearer second"


def test_aiohttp_has_what_the_connector_overrides() -> None:
    """The choice of a connection, and its making; a request takes a proxy until then."""
    from aiohttp import ClientRequest, TCPConnector

    for method in (TCPConnector.connect, TCPConnector._create_connection):
        assert list(inspect.signature(method).parameters) == ["self", "req", "traces", "timeout"]
    assert list(inspect.signature(ClientRequest.update_proxy).parameters)[1:] == [
        "proxy",
        "proxy_auth",
        "proxy_headers",
    ]


def test_huggingface_hub_sends_everything_over_one_client() -> None:
    """That of the process, whose `send` is replaced, and its filesystem has no threads of its own with one worker."""
    import httpx2
    from huggingface_hub import HfApi, HfFileSystem
    from huggingface_hub.utils._http import default_client_factory

    with default_client_factory() as client:
        assert isinstance(client, httpx2.Client)
        assert client.event_hooks["request"]
    assert "get_session()" in inspect.getsource(HfApi.model_info)
    assert HfFileSystem(token=False, max_workers=1, skip_instance_cache=True).max_workers == 1


def test_adlfs_leaves_its_client_to_a_subclass() -> None:
    """Whatever the environment says."""
    from adlfs import AzureBlobFileSystem

    class Files(AzureBlobFileSystem):  # type: ignore[misc] # adlfs has no types
        service_client = None

        def do_connect(self) -> None:
            self.service_client = _Client()

    files = Files(account_key="-", skip_instance_cache=True)
    assert isinstance(files.service_client, _Client)
    assert files.credential is None


class _Client:
    async def close(self) -> None:
        """adlfs closes its client when the process ends."""
