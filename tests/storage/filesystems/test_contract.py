"""What every store promises, held against a real server of each kind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from storage.store_servers import StoreServer, storage_at

from appliance.config.storage import GlobalStorageConfig
from appliance.core.errors import ArtifactChangedError, ArtifactNotFoundError, StorageUnavailableError
from appliance.storage.filesystems.base import Listing, RemoteFile, Store
from appliance.storage.filesystems.registry import RemoteFilesystem, filesystem_for

LARGE = random.Random(0).randbytes(700_000)
FILES = {
    "model/config.json": b"{}",
    "model/model.safetensors": LARGE,
    "model/empty": b"",
    "model/.hidden": b"hidden",
    "model/deep/er/x.txt": b"x",
    "model/a name+with (signs) & 100%~é.txt": "ünïcode".encode(),
    "model-v2/other.txt": b"other",
    "model.txt": b"beside",
}
Fill = Callable[[StoreServer], str]
BELOW = {name.removeprefix("model/"): data for name, data in FILES.items() if name.startswith("model/")}


@asynccontextmanager
async def opened(
    uri: str, settings: GlobalStorageConfig, options: Mapping[str, object] | None = None
) -> AsyncIterator[Store]:
    """The store of a URI, closed in the end."""
    filesystem = filesystem_for(uri)
    assert isinstance(filesystem, RemoteFilesystem)
    store = filesystem.open(storage_at(uri, options), settings)
    try:
        yield store
    finally:
        await store.close()


async def listed(uri: str, settings: GlobalStorageConfig) -> Listing:
    """What lies at a URI."""
    async with opened(uri, settings) as store:
        return await store.list()


async def contents(uri: str, settings: GlobalStorageConfig) -> Mapping[str, bytes]:
    """What lies at a URI, with all of its bytes."""
    async with opened(uri, settings) as store:
        listing = await store.list()
        return {file.name: await read(store, file, 0, file.size) for file in listing.files}


async def read(store: Store, file: RemoteFile, start: int, end: int) -> bytes:
    """A part of a file; nobody asks for none of it."""
    if end == start:
        return b""
    async with store.read(file, start, end) as body:
        return await asyncio.to_thread(lambda: b"".join(iter(lambda: body.read(1 << 16), b"")))


def named(listing: Listing, name: str) -> RemoteFile:
    """One file of a listing."""
    return next(file for file in listing.files if file.name == name)


@pytest.fixture(scope="module")
def filled() -> Fill:
    """Fills a root of each store_server once with the files above, for tests that change nothing in it."""
    roots: dict[str, str] = {}

    def fill(store_server: StoreServer) -> str:
        if store_server.kind not in roots:
            roots[store_server.kind] = f"filled-{uuid4().hex[:12]}"
            store_server.fill(roots[store_server.kind], FILES)
        return roots[store_server.kind]

    return fill


async def test_all_below_a_directory_is_listed_and_nothing_beside_it(store_server: StoreServer, filled: Fill) -> None:
    """By path segment: `model` brings neither `model-v2` nor `model.txt`; empty files and dotfiles are files."""
    root = filled(store_server)

    listing = await listed(store_server.uri(f"{root}/model/"), store_server.settings())
    assert {file.name: file.size for file in listing.files} == {name: len(data) for name, data in BELOW.items()}
    assert not listing.is_file


async def test_every_file_is_read_as_it_is(store_server: StoreServer, filled: Fill) -> None:
    """Whatever its name has in it."""
    root = filled(store_server)

    assert await contents(store_server.uri(f"{root}/model/"), store_server.settings()) == BELOW


async def test_a_single_file_is_listed_alone(store_server: StoreServer, filled: Fill) -> None:
    """Under its last segment, with a digest or a version that tells it from others."""
    if store_server.kind == "oci":
        pytest.skip("a file of an artifact has no URI of its own")
    root = filled(store_server)

    listing = await listed(store_server.uri(f"{root}/model/model.safetensors"), store_server.settings())
    assert listing.is_file
    assert [(file.name, file.size) for file in listing.files] == [("model.safetensors", len(LARGE))]
    assert listing.files[0].version or listing.files[0].digests


async def test_a_single_file_is_read(store_server: StoreServer, filled: Fill) -> None:
    """And so is one whose name has signs that mean something in a URL."""
    if store_server.kind == "oci":
        pytest.skip("a file of an artifact has no URI of its own")
    root = filled(store_server)

    uri = store_server.uri(f"{root}/model/a name+with (signs) & 100%~é.txt")
    assert list((await contents(uri, store_server.settings())).values()) == ["ünïcode".encode()]


async def test_a_range_is_exact(store_server: StoreServer, filled: Fill) -> None:
    """From its first byte up to its last, at either end of the file and within."""
    root = filled(store_server)

    async with opened(store_server.uri(f"{root}/model/"), store_server.settings()) as store:
        file = named(await store.list(), "model.safetensors")
        for start, end in ((0, 1), (0, 700_000), (1, 699_999), (699_999, 700_000), (65_536, 131_072)):
            assert await read(store, file, start, end) == LARGE[start:end]


async def test_two_listings_of_the_same_are_equal(store_server: StoreServer, filled: Fill) -> None:
    """A state has one name, so that what is in the cache is found again."""
    root = filled(store_server)
    uri = store_server.uri(f"{root}/model/")

    assert await listed(uri, store_server.settings()) == await listed(uri, store_server.settings())


async def test_what_is_not_there_is_not_found(store_server: StoreServer, filled: Fill) -> None:
    """It may be a file, a directory, or all of the root."""
    root = filled(store_server)

    for path in (f"{root}/nope/", f"{root}/mode", f"{root}-nope/model/"):
        with pytest.raises(ArtifactNotFoundError):
            await listed(store_server.uri(path), store_server.settings())


async def test_a_file_that_changes_midway_is_not_mixed(store_server: StoreServer, root: str) -> None:
    """Half of one version and half of another is neither: the second range is refused."""
    if store_server.kind in ("hf", "oci"):
        pytest.skip("a commit and a blob do not change")
    store_server.fill(root, FILES)
    async with opened(store_server.uri(f"{root}/model/"), store_server.settings()) as store:
        file = named(await store.list(), "model.safetensors")
        await read(store, file, 0, 1000)
        store_server.fill(root, FILES | {"model/model.safetensors": LARGE[::-1]})

        with pytest.raises(ArtifactChangedError, match=r"model\.safetensors: changed during the download"):
            await read(store, file, 1000, 2000)


async def test_a_file_that_goes_midway_is_told(store_server: StoreServer, filled: Fill) -> None:
    """A range of what is not there any more is no empty range."""
    root = filled(store_server)
    async with opened(store_server.uri(f"{root}/model/"), store_server.settings()) as store:
        listing = await store.list()
        file = RemoteFile("gone.safetensors", 100, listing.files[0].version)

        with pytest.raises((ArtifactNotFoundError, ArtifactChangedError)):
            await read(store, file, 0, 100)


async def test_a_store_out_of_reach_may_come_back(store_server: StoreServer) -> None:
    """A refused connection is worth another try."""
    with pytest.raises(StorageUnavailableError, match="try again"):
        await listed(store_server.uri("root/model/", port=9), store_server.settings(port=9))


async def test_reading_can_stop_early(store_server: StoreServer, filled: Fill) -> None:
    """Whoever stops in the middle of an answer can read again at once."""
    root = filled(store_server)

    async with opened(store_server.uri(f"{root}/model/"), store_server.settings()) as store:
        file = named(await store.list(), "model.safetensors")
        async with store.read(file, 0, file.size) as body:
            assert body.read(1)
        assert await read(store, file, 0, 10) == LARGE[:10]
