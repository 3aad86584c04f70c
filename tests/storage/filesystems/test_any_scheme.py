"""Schemes that have no store of their own, through the filesystems of fsspec."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from server_process import free_port
from storage.filesystems.test_contract import contents, listed, opened, read
from storage.servers import ftp, s3, sftp
from storage.servers.sftp import PASSWORD, USER, SftpServer
from structlog.testing import capture_logs

from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import (
    AccessDeniedError,
    ArtifactChangedError,
    ArtifactNotFoundError,
    MissingPackageError,
    StorageUnavailableError,
)
from appliance.storage import lockfile, materialize
from appliance.storage.filesystems.registry import FILESYSTEMS
from appliance.storage.lockfile import LockEntry
from appliance.storage.manifest import list_files

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 12_000,
    "deep/er/a name.txt": "ünïcode".encode(),
}


def fetched(storage: StorageConfig, settings: GlobalStorageConfig) -> dict[str, bytes]:
    """The files of a storage, by the whole way."""
    path = materialize(storage, settings)
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def settings(tmp_path: Path) -> GlobalStorageConfig:
    """A cache of the test's own, and little patience."""
    return GlobalStorageConfig.model_validate({"cache_dir": tmp_path / "cache", "transfer": {"retries": 1}})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    """An SSH server with a model."""
    with sftp.running(tmp_path_factory.mktemp("sftp")) as server:
        for name, data in FILES.items():
            server.put(f"srv/model/{name}", data)
        yield server


@pytest.fixture
def known(server: SftpServer, tmp_path: Path) -> SftpServer:
    """The server, with its key among the known ones of this user."""
    folder = tmp_path / "home/.ssh"
    folder.mkdir()
    (folder / "known_hosts").write_text(server.known_hosts)
    return server


def storage_of(server: SftpServer, path: str = "srv/model", **options: object) -> StorageConfig:
    """A path of the SSH server."""
    return StorageConfig.model_validate(
        {
            "uri": f"sftp://127.0.0.1:{server.port}/{path}",
            "options": {
                "username": USER,
                "password": PASSWORD,
                "look_for_keys": False,
                "allow_agent": False,
                **options,
            },
        }
    )


def test_a_directory_comes_from_an_ssh_server(known: SftpServer, settings: GlobalStorageConfig) -> None:
    """Every file, as it is."""
    assert fetched(storage_of(known), settings) == FILES


def test_a_single_file_comes_from_an_ssh_server(known: SftpServer, settings: GlobalStorageConfig) -> None:
    """Under its own name."""
    path = materialize(storage_of(known, "srv/model/model.safetensors"), settings)
    assert path.name == "model.safetensors"
    assert path.read_bytes() == FILES["model.safetensors"]


def test_an_unknown_host_is_refused(server: SftpServer, settings: GlobalStorageConfig) -> None:
    """Anyone could claim to be it; who wants to trust it says so."""
    with pytest.raises(AccessDeniedError, match=r"host key ssh-ed25519 SHA256:.* is not known; .*known_hosts"):
        materialize(storage_of(server), settings)

    with pytest.raises(AccessDeniedError, match="is not known"):
        materialize(storage_of(server, host_key_policy="reject"), settings)
    assert fetched(storage_of(server, host_key_policy="auto_add"), settings) == FILES


def test_a_host_that_refuses_connections_is_named(settings: GlobalStorageConfig) -> None:
    """In words, without the number of an error that has none."""
    once = settings.model_copy(update={"transfer": settings.transfer.model_copy(update={"retries": 0})})

    with pytest.raises(StorageUnavailableError, match=r"/x: Unable to connect to port \d+ on 127\.0\.0\.1; try again"):
        materialize(StorageConfig(uri=f"sftp://{USER}@127.0.0.1:{free_port()}/x"), once)


def test_a_wrong_password_names_the_options(known: SftpServer, settings: GlobalStorageConfig) -> None:
    """And shows no value of them."""
    with pytest.raises(AccessDeniedError, match=r"storage\.options") as caught:
        materialize(storage_of(known, password="s3cret-wrong"), settings)
    assert "s3cret" not in str(caught.value)


def test_what_is_not_on_an_ssh_server_is_not_found(known: SftpServer, settings: GlobalStorageConfig) -> None:
    """A directory or a file."""
    with pytest.raises(ArtifactNotFoundError, match="nothing found"):
        materialize(storage_of(known, "srv/nope"), settings)


def test_a_model_comes_from_an_ftp_server(tmp_path: Path, settings: GlobalStorageConfig) -> None:
    """Over one connection for each thread."""
    for name, data in FILES.items():
        (tmp_path / "ftp/model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ftp/model" / name).write_bytes(data)
    with ftp.running(tmp_path / "ftp") as port:
        assert fetched(StorageConfig(uri=f"ftp://127.0.0.1:{port}/model"), settings) == FILES
        with pytest.raises(AccessDeniedError, match=r"530 .*storage\.options"):
            materialize(StorageConfig(uri=f"ftp://nobody:s3cret@127.0.0.1:{port}/model"), settings)


def test_a_model_comes_out_of_a_zip_in_a_bucket(seaweedfs: s3.S3Server, settings: GlobalStorageConfig) -> None:
    """A chain of filesystems, each with its own options."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    seaweedfs.put("packed/model.zip", packed.getvalue())
    options = {"s3": {"anon": True, "endpoint_url": seaweedfs.url}}

    storage = StorageConfig.model_validate({"uri": f"zip::s3://{s3.BUCKET}/packed/model.zip", "options": options})
    assert fetched(storage, settings) == FILES


@pytest.fixture
def in_memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's filesystem in memory, and not the one of other tests."""
    from fsspec.implementations.memory import MemoryFileSystem

    row = FILESYSTEMS.pop("memory")
    yield MemoryFileSystem()
    MemoryFileSystem.store.clear()
    FILESYSTEMS["memory"] = row


async def test_files_in_memory_are_listed(in_memory: fsspec.AbstractFileSystem, settings: GlobalStorageConfig) -> None:
    """Twice alike, although a listing and a look at one file have times of different types."""
    in_memory.pipe({f"/m/{name}": data for name, data in FILES.items()})

    assert await contents("memory://m", settings) == FILES
    assert await listed("memory://m", settings) == await listed("memory://m", settings)
    assert (await listed("memory://m/config.json", settings)).is_file


async def test_a_file_that_changes_midway_is_not_mixed(
    in_memory: fsspec.AbstractFileSystem, settings: GlobalStorageConfig
) -> None:
    """Also where no request can ask for one version alone: it is looked at again."""
    in_memory.pipe("/m/model.safetensors", bytes(3_000_000))

    async with opened("memory://m", settings) as store:
        (file,) = (await store.list()).files
        assert await read(store, file, 0, 2_000_000) == bytes(2_000_000)
        in_memory.pipe("/m/model.safetensors", bytes(3_000_000))
        with pytest.raises(ArtifactChangedError, match=r"model\.safetensors: changed during the download"):
            await read(store, file, 2_000_000, 3_000_000)


def test_what_has_no_digest_is_reported(known: SftpServer, settings: GlobalStorageConfig) -> None:
    """In the log and in the manifest; a lock file closes the gap."""
    with capture_logs() as logs:
        path = materialize(storage_of(known), settings)

    (event,) = (event for event in logs if event["event"] == "artifact.unverified")
    assert event["files"] == len(FILES)
    assert "verified by size only" in event["reason"]
    manifest = json.loads((path.parent / "appliance-manifest.json").read_text())
    assert set(manifest["verified_by_size_only"]) == set(FILES)

    lock = settings.cache_dir / "appliance.lock"  # type: ignore[operator] # is set above
    lockfile.write(lock, [LockEntry.of(storage_of(known), list_files(path, read_all=True))])
    known.put("srv/model/config.json", b"[]")
    try:
        with pytest.raises(ArtifactChangedError, match=r"config\.json has the SHA-256"):
            materialize(storage_of(known), settings.model_copy(update={"lock_file": lock}))
    finally:
        known.put("srv/model/config.json", FILES["config.json"])


def test_other_options_are_another_artifact(known: SftpServer, settings: GlobalStorageConfig) -> None:
    """They may choose the host; and no value of them is in the name of anything."""
    first = materialize(storage_of(known), settings)
    second = materialize(storage_of(known, timeout=20), settings)

    assert first != second
    names = "".join(path.as_posix() for path in settings.cache_dir.rglob("*"))  # type: ignore[union-attr] # is set
    assert PASSWORD not in names + (first.parent / "appliance-manifest.json").read_text()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, settings: GlobalStorageConfig) -> None:
    """In fsspec's own words."""
    from fsspec.registry import known_implementations

    row = {"class": "absent_package.Files", "err": "install absent_package to read absent://"}
    monkeypatch.setitem(known_implementations, "absent", row)
    with pytest.raises(MissingPackageError, match="install absent_package") as caught:
        materialize(StorageConfig(uri="absent://x"), settings)
    assert caught.value.exit_code == 2
