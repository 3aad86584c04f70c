"""`https://` and `http://`: what lies on web servers, which headers each host gets, and what servers do wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from storage.filesystems.test_contract import contents, listed, opened, read
from storage.servers import web
from storage.servers.s3 import PRIVATE, S3Server
from storage.servers.web import WebServer

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import AccessDeniedError, ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.storage import materialize
from appliance.storage.filesystems.http import parse_sums

Environment = pytest.MonkeyPatch
SECRET = {"Authorization": "Bearer s3cret"}


def settings(*blocks: object, **more: object) -> GlobalStorageConfig:
    """Settings with blocks of headers."""
    return GlobalStorageConfig.model_validate({"credentials": {"http": blocks}, "transfer": {"retries": 1}, **more})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    """A server of the test's own, with one file."""
    with web.own(tmp_path / "web") as server:
        server.put("model.gguf", b"GGUF")
        yield server


@pytest.fixture
def other(tmp_path: Path) -> Iterator[WebServer]:
    """Another host: the same address, and another port."""
    with web.own(tmp_path / "other") as server:
        server.put("model.gguf", b"GGUF")
        yield server


async def test_a_host_gets_its_headers(server: WebServer) -> None:
    """From the config, by its name."""
    server.wants = SECRET
    given = settings({"host": "127.0.0.1", "headers": SECRET})

    assert await contents(f"{server.url}/model.gguf", given) == {"model.gguf": b"GGUF"}
    async with opened(f"{server.url}/model.gguf", given) as store:
        assert store.credential == "headers of storage.credentials.http"


async def test_headers_are_for_one_host(server: WebServer, other: WebServer) -> None:
    """A redirect to another host, or another port of it, takes none of them along."""
    server.wants = SECRET
    server.leads_to = other.url
    given = settings({"host": f"127.0.0.1:{server.port}", "headers": {**SECRET, "X-Api-Key": "s3cret-key"}})

    assert await contents(f"{server.url}/model.gguf", given) == {"model.gguf": b"GGUF"}
    assert other.seen
    assert "s3cret" not in str(other.seen)


async def test_a_user_in_the_uri_is_for_its_host(server: WebServer, other: WebServer) -> None:
    """It is said in a header, and neither in the place nor to whom a redirect leads."""
    server.wants = {"Authorization": "Basic bWU6czNjcmV0"}
    server.leads_to = other.url

    async with opened(f"http://me:s3cret@127.0.0.1:{server.port}/model.gguf", settings()) as store:
        listing = await store.list()
        assert store.credential == "the user in the URI"
    assert listing.uri == f"{server.url}/model.gguf"
    assert "bWU6czNjcmV0" not in str(other.seen)


async def test_kserves_variable_has_the_headers_of_a_host(
    server: WebServer, only_given_credentials: Environment
) -> None:
    """A JSON object, in a variable that begins with the host's name."""
    server.wants = SECRET
    only_given_credentials.setenv("127.0.0.1-headers", json.dumps(SECRET))

    assert await contents(f"{server.url}/model.gguf", settings()) == {"model.gguf": b"GGUF"}


async def test_a_broken_variable_is_told(server: WebServer, only_given_credentials: Environment) -> None:
    """By its name, and without what is in it."""
    only_given_credentials.setenv("127.0.0.1-headers", "s3cret")

    with pytest.raises(StorageError, match=r"127\.0\.0\.1-headers is not a JSON object") as caught:
        await listed(f"{server.url}/model.gguf", settings())
    assert "s3cret" not in str(caught.value)


async def test_who_may_not_read_is_told_what_to_set(server: WebServer) -> None:
    """With the host, to be copied."""
    server.wants = SECRET

    with pytest.raises(AccessDeniedError, match=r"401.*anonymous; set the headers of 127\.0\.0\.1"):
        await listed(f"{server.url}/model.gguf", settings())


async def test_a_signed_query_goes_along_and_is_not_shown(server: WebServer) -> None:
    """For a directory to each of its files; in the place and in messages it is not."""
    server.put("model/x.txt", b"x")
    server.list_files("model")

    async with opened(f"{server.url}/model/?sig=s3cret%2Fx", settings()) as store:
        listing = await store.list()
        assert await read(store, listing.files[0], 0, 1) == b"x"
        assert store.credential == "the query of the URI"
    assert listing.uri == f"{server.url}/model/"
    with pytest.raises(ArtifactNotFoundError) as caught:
        await listed(f"{server.url}/nope?sig=s3cret%2Fx", settings())
    assert "s3cret" not in str(caught.value)


async def test_a_presigned_url_of_an_object_store_is_a_file(seaweedfs: S3Server) -> None:
    """Its signature is for GET alone, and for this very URL."""
    seaweedfs.put("signed/a name+é.bin", b"signed", PRIVATE)
    target = {"Bucket": PRIVATE, "Key": "signed/a name+é.bin"}
    url = seaweedfs.client.generate_presigned_url("get_object", Params=target)

    assert await contents(url, settings()) == {"a name+é.bin": b"signed"}


async def test_a_directory_without_a_listing_says_how_to_make_one(server: WebServer) -> None:
    """The command is in the message."""
    with pytest.raises(ArtifactNotFoundError, match=r"no SHA256SUMS.*sha256sum"):
        await listed(f"{server.url}/", settings())


async def test_a_listing_that_leads_elsewhere_is_refused(server: WebServer) -> None:
    """And nothing of it is asked for."""
    server.put("model/SHA256SUMS", f"{'0' * 64}  ../model.gguf\n".encode())

    with pytest.raises(ArtifactCorruptError, match="leads out of its directory"):
        await listed(f"{server.url}/model/", settings())
    assert len(server.seen) == 1


async def test_a_listed_file_that_is_missing_is_named(server: WebServer) -> None:
    """A listing that is older than the files."""
    server.put("model/SHA256SUMS", f"{'0' * 64}  gone.bin\n".encode())

    with pytest.raises(ArtifactNotFoundError, match=r"model/gone\.bin"):
        await listed(f"{server.url}/model/", settings())


def test_a_listing_is_what_files_are_held_to(server: WebServer, tmp_path: Path) -> None:
    """A file that is not the one that was listed is not brought."""
    server.put("model/x.txt", b"x")
    server.list_files("model")
    server.put("model/x.txt", b"y")

    with pytest.raises(ArtifactCorruptError, match=r"x\.txt"):
        materialize(StorageConfig(uri=f"{server.url}/model/"), settings(cache_dir=tmp_path / "cache"), lambda *_: None)


@pytest.mark.parametrize(
    "line",
    [
        "{sum}  a name",
        "{sum} *a name",
        "{sum}  ./a name",
        "SHA256 (a name) = {sum}",
        "# made by hand\n\n{sum}  a name\n{other}  SHA256SUMS",
    ],
)
def test_the_listings_of_all_tools_are_read(line: str) -> None:
    """GNU's, in either mode, and BSD's; the file's own line, and comments, do not count."""
    digest = sha256(b"x").hexdigest()

    assert parse_sums("place", line.format(sum=digest, other="0" * 64)) == {"a name": digest}


def test_what_is_no_listing_is_told_with_its_line() -> None:
    """A page of HTML that says that all is well, for one."""
    with pytest.raises(ArtifactCorruptError, match="line 1 of SHA256SUMS"):
        parse_sums("place", "<html>")


def test_a_server_without_ranges_sends_its_files_whole(tmp_path: Path) -> None:
    """Python's own, for one: each file comes in one request, and once."""
    data = bytes(range(256)) * 4096
    with web.without_ranges(tmp_path) as server:
        server.put("model/model.safetensors", data)
        server.list_files("model")

        path = materialize(
            StorageConfig(uri=f"{server.url}/model/"),
            settings(cache_dir=tmp_path / "cache"),
            lambda *_: None,
        )
        assert (path / "model.safetensors").read_bytes() == data


async def test_a_part_of_an_indivisible_file_is_exact(tmp_path: Path) -> None:
    """As when a fetch goes on after a fault."""
    with web.without_ranges(tmp_path) as server:
        server.put("x.bin", b"0123456789" * 100_000)

        async with opened(f"{server.url}/x.bin", settings()) as store:
            (file,) = (await store.list()).files
            assert not file.is_divisible
            assert await read(store, file, 500_003, 500_008) == b"34567"


async def test_two_queries_without_a_version_are_two_places(tmp_path: Path) -> None:
    """Where nothing but the query tells two files of one size apart, one must not be taken for the other."""
    with web.own(tmp_path) as server:
        server.put("get", b"1")
        server.is_dynamic = True

        places = {(await listed(f"{server.url}/get?file={name}", settings())).uri for name in "ab"}
        assert len(places) == 2
        assert not any("file=" in place for place in places)


@pytest.mark.parametrize("uri", ["http://", "https:///x", "http://[::1/x"])
async def test_a_uri_without_a_host_is_refused(uri: str) -> None:
    """In words."""
    with pytest.raises(StorageError, match="write https://HOST/FILE"):
        await listed(uri, settings())


async def test_a_server_that_leads_in_circles_is_told(server: WebServer) -> None:
    """Not followed for ever."""
    server.leads_to = server.url

    with pytest.raises(StorageError, match="redirects too often"):
        await listed(f"{server.url}/model.gguf", settings())


async def test_a_server_that_leads_off_the_web_is_not_followed(server: WebServer) -> None:
    """To a file of this machine, say."""
    server.leads_to = "file:///etc"

    with pytest.raises(StorageError, match="redirects to an invalid address"):
        await listed(f"{server.url}/model.gguf", settings())
