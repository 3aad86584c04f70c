"""`https://` and `http://`: what lies on web servers, which headers each host gets, and what servers do wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from storage.filesystems.test_contract import contents, listed, opened, read
from storage.servers import web
from storage.servers.s3 import PRIVATE, S3Server
from storage.servers.web import WebServer
from yarl import URL

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactCorruptError,
    ArtifactNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from appliance.storage import materialize
from appliance.storage.filesystems.http_listing import parse_index, parse_sums

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


INDEX = {"config.json": b"{}", "deep/er/x y+\u00e9%.txt": b"x", "model.safetensors": bytes(100_000)}

APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /model</title></head><body><h1>Index of /model</h1><table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="/">Parent Directory</a></td></tr><tr><td><a href="a%20file.bin">a file.bin</a></td></tr>
<tr><td><a href="sub/">sub/</a></td></tr><tr><td><a href="/model/rooted.bin">rooted.bin</a></td></tr>
<tr><td><a href="{host}/model/absolute.bin">x</a></td></tr>
<tr><td><a href="https://elsewhere.test/model/other.bin">x</a></td></tr><tr><td><a href="mailto:me@host">x</a></td></tr>
<tr><td><a href="../out.bin">x</a></td></tr><tr><td><a href="..%2Fout.bin">x</a></td></tr>
<tr><td><a href="sub/further.bin">x</a></td></tr><tr><td><a href="signed.bin?key=1">x</a></td></tr>
<tr><td><a href="#top">x</a></td></tr><tr><td><a href="http://[">x</a></td></tr><tr><td><a>x</a></td></tr>
</table></body></html>"""


def test_an_index_page_names_what_is_in_its_directory() -> None:
    """Parents, sort links, other hosts, queries and anything deeper are no files of it."""
    page = APACHE.format(host="http://host.test")

    names = parse_index(URL("http://host.test/model/"), page)
    assert names == ("a file.bin", "sub/", "rooted.bin", "absolute.bin")


@pytest.mark.parametrize("page", ["", "<title>Our models</title><a href='x.bin'>x</a>", "<a href='x.bin'>Index of</a>"])
def test_another_page_is_no_index(page: str) -> None:
    """Whatever it links to."""
    assert parse_index(URL("http://host.test/model/"), page) is None


async def test_the_index_pages_of_nginx_are_listed(nginx: WebServer) -> None:
    """With the sizes and tags of the files; the directories in it as well."""
    for name, data in INDEX.items():
        nginx.put(f"indexed/{name}", data)

    assert await contents(f"{nginx.url}/indexed/", settings()) == INDEX
    listing = await listed(f"{nginx.url}/indexed/", settings())
    assert all(file.version and not file.digests for file in listing.files)


async def test_the_index_pages_of_python_are_listed(tmp_path: Path) -> None:
    """`python -m http.server`, which knows no ranges."""
    with web.without_ranges(tmp_path) as server:
        for name, data in INDEX.items():
            server.put(f"model/{name}", data)

        assert await contents(f"{server.url}/model/", settings()) == INDEX


async def test_a_file_of_digests_goes_before_an_index_page(nginx: WebServer) -> None:
    """It has more to hold the files to."""
    nginx.put("both/x.bin", b"x")
    nginx.list_files("both")
    nginx.put("both/unlisted.bin", b"x")

    (file,) = (await listed(f"{nginx.url}/both/", settings())).files
    assert file.digests


async def test_an_index_without_end_is_refused(server: WebServer) -> None:
    """A directory that links to itself."""
    page = "<title>Index of /</title><a href='again/'>again</a>"
    server.pages = {f"/model/{'again/' * depth}": page for depth in range(1100)}

    with pytest.raises(StorageError, match=r"list more than .* files or 1,000 directories"):
        await listed(f"{server.url}/model/", settings())


async def test_a_web_page_is_no_model(server: WebServer) -> None:
    """A login, most often."""
    server.pages = {"/get": "<html>Log in</html>"}

    with pytest.raises(StorageError, match=r"a web page, and no file of a model; check the URI"):
        await listed(f"{server.url}/get", settings())


@pytest.mark.parametrize(
    ("page", "uri"),
    [
        ("owner/name", "hf://owner/name"),
        ("owner/name/tree/main", "hf://owner/name"),
        ("owner/name/tree/v1/sub/", "hf://owner/name@v1/sub"),
        ("owner/name/blob/main/model.gguf?download=true", "hf://owner/name/model.gguf"),
    ],
)
async def test_the_page_of_a_model_on_a_mirror_suggests_its_uri(
    server: WebServer, only_given_credentials: Environment, page: str, uri: str
) -> None:
    """The address in the browser is what people copy."""
    only_given_credentials.setenv("HF_ENDPOINT", server.url)
    server.pages = {f"/{page.partition('?')[0]}": "<html>"}

    with pytest.raises(StorageError, match=f"(a web page|no index page).*did you mean {uri}\\?"):
        await listed(f"{server.url}/{page}", settings())


async def test_a_listing_that_leads_elsewhere_is_refused(server: WebServer) -> None:
    """And nothing of it is asked for."""
    server.put("model/SHA256SUMS", f"{'0' * 64}  ../model.gguf\n".encode())

    with pytest.raises(ArtifactCorruptError, match="leads out of its directory"):
        await listed(f"{server.url}/model/", settings())
    assert len(server.seen) == 1


async def test_a_listed_file_that_is_missing_is_named(server: WebServer) -> None:
    """A listing that is older than the files."""
    server.put("model/SHA256SUMS", f"{'0' * 64}  gone.bin\n".encode())

    with pytest.raises(ArtifactNotFoundError, match=r"model/: gone\.bin: not found"):
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


async def _respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pieces: Sequence[bytes]) -> None:
    """Respond as to a range of ten bytes: one byte to the first request, and the pieces, slowly, to the second."""
    request = await reader.readuntil(b"\r\n\r\n")
    is_first = b"bytes=0-0" in request
    content_range = b"0-0/10" if is_first else b"0-9/10"
    writer.write(b'HTTP/1.1 206 Partial Content\r\nETag: "1"\r\nConnection: close\r\n')
    writer.write(b"Content-Range: bytes " + content_range + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in [b"1\r\n0", b"\r\n0\r\n\r\n"] if is_first else pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.3)
    writer.close()


async def _contents_of(*pieces: bytes) -> bytes:
    server = await asyncio.start_server(lambda reader, writer: _respond(reader, writer, pieces), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return (await contents(f"http://127.0.0.1:{port}/model.gguf", settings()))["model.gguf"]


async def test_a_chunked_response_that_comes_slowly_is_whole() -> None:
    """A chunk may end long after its bytes came."""
    assert await _contents_of(b"", b"4\r\n0123", b"\r\n6\r\n45", b"6789", b"\r\n0\r\n\r\n") == b"0123456789"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [((b"4\r\n0123\r\n", b"0\r\n\r\n"), "ends 6 bytes early"), ((b"b\r\n0123456789x\r\n", b"0\r\n\r\n"), "is longer")],
)
async def test_a_response_of_another_length_is_an_error(pieces: Sequence[bytes], words: str) -> None:
    """Its bytes would be taken for those of the file."""
    with pytest.raises(StorageUnavailableError, match=words):
        await _contents_of(*pieces)


@pytest.mark.parametrize("uri", ["https://host.test/model.gguf", "hf://owner/name", "oci://ghcr.io/owner/name"])
def test_options_are_refused_with_what_to_set_instead(uri: str) -> None:
    """Those of the session would go to every host that a redirect leads to."""
    storage = StorageConfig.model_validate({"uri": uri, "options": {"headers": {"Authorization": "s3cret"}}})

    with pytest.raises(StorageError, match=r"takes no storage\.options; set .* in storage\.credentials") as caught:
        materialize(storage, settings(), lambda *_: None)
    assert "s3cret" not in str(caught.value)


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
