"""The lock: what it holds, what it refuses, and how it says so."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_launcher import run_appliance
from storage.fake_hub import Hub, Repository
from storage.memory_store import DIRECTORIES
from storage.weights import WITHOUT_TENSORS

from appliance.cli.pull import pull_models, write_lock
from appliance.config import Config
from appliance.config.storage import GlobalStorageConfig, StorageConfig
from appliance.core.errors import ArtifactChangedError, StorageError
from appliance.models.factory import ModelFactory
from appliance.storage import Cache, lockfile
from appliance.storage.manifest import FileInfo, FileList

FILES = {"config.json": b"{}", "model.safetensors": WITHOUT_TENSORS + b"weights" * 100}


@pytest.fixture
def place() -> Iterator[dict[str, bytes]]:
    """The files of `memory://place`."""
    files = dict(FILES)
    DIRECTORIES["place"] = files
    yield files
    del DIRECTORIES["place"]


Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path, cache: Cache) -> Read:
    """Makes a config with one model, whose storage has these keys."""

    def read(uri: str = "memory://place", **storage: object) -> Config:
        model = {"name": "a", "class": "generative", "storage": {"uri": uri, **storage}}
        settings = {"cache_dir": str(cache.root), "lock_file": str(tmp_path / "appliance.lock")}
        return Config.model_validate({"models": [model], "storage": settings})

    return read


def _frozen(config: Config) -> Config:
    return config.model_copy(update={"storage": config.storage.model_copy(update={"frozen": True})})


def test_a_lock_names_every_file_with_size_and_digest(read: Read, place: dict[str, bytes], tmp_path: Path) -> None:
    """It is JSON that people can read, and names the URI as the config has it and the place it led to."""
    write_lock(read())

    assert json.loads((tmp_path / "appliance.lock").read_text()) == {
        "version": 1,
        "storages": [
            {
                "uri": "memory://place",
                "place": "memory://place",
                "files": {
                    name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                    for name, data in FILES.items()
                },
            }
        ],
    }


def test_the_same_state_makes_the_same_bytes(read: Read, place: dict[str, bytes], tmp_path: Path) -> None:
    """Locking again changes nothing that a version control would show."""
    write_lock(read(exclude=["*.md"]))
    first = (tmp_path / "appliance.lock").read_bytes()
    write_lock(read(exclude=["*.md"]))

    assert (tmp_path / "appliance.lock").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir() if "lock" in path.name] == ["appliance.lock"]


def test_configs_of_one_directory_share_a_lock(read: Read, place: dict[str, bytes], tmp_path: Path) -> None:
    """Locking one leaves the entries of the other, and replaces its own."""
    write_lock(read())
    write_lock(read("memory://place/config.json"))
    place["config.json"] = b"{ }"
    write_lock(read("memory://place/config.json"))

    entries = json.loads((tmp_path / "appliance.lock").read_text())["storages"]
    assert [(entry["uri"], entry["files"]["config.json"]["size"]) for entry in entries] == [
        ("memory://place", 2),
        ("memory://place/config.json", 3),
    ]


def test_a_lock_holds_no_secret(tmp_path: Path) -> None:
    """A lock is committed; a signed URL or a password in a URI is not."""
    storage = StorageConfig(uri="https://me:s3cret@host/model.gguf?sig=s3cret")
    found = FileList("https://host/model.gguf", {"model.gguf": FileInfo(1, "0" * 64)}, is_file=True)
    lockfile.write(tmp_path / "appliance.lock", [lockfile.LockEntry.of(storage, found)])

    assert "s3cret" not in (tmp_path / "appliance.lock").read_text()
    assert lockfile.read(tmp_path / "appliance.lock")


def test_storages_with_other_options_are_locked_apart(tmp_path: Path) -> None:
    """Options may choose a version of the files; secrets among them choose nothing, and are not in the lock."""

    def storage(version: str, password: str) -> StorageConfig:
        options = {"versionId": version, "password": password, "s3": {"token": password}}
        return StorageConfig.model_validate({"uri": "s3://bucket/m", "options": options})

    lock = tmp_path / "appliance.lock"
    found = {version: FileList("s3://bucket/m", {"m": FileInfo(1, version * 64)}) for version in "ab"}
    lockfile.write(lock, [lockfile.LockEntry.of(storage(each, "s3cret"), found[each]) for each in "ab"])

    settings = GlobalStorageConfig(lock_file=lock, frozen=True)
    for version, files in found.items():
        entry = lockfile.find_entry(storage(version, "n3wer"), settings)
        assert entry is not None
        assert entry.found == files
    with pytest.raises(StorageError, match="not in"):
        lockfile.find_entry(storage("c", "s3cret"), settings)


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "other bytes": (
        lambda files: files.update({"config.json": b"[]"}),
        f"config.json has the SHA-256 {hashlib.sha256(b'[]').hexdigest()}, and {hashlib.sha256(b'{}').hexdigest()} is",
    ),
    "other size": (
        lambda files: files.update({"config.json": b"{   }"}),
        "config.json has 5 bytes, and 2 are locked",
    ),
    "one more": (lambda files: files.update({"new.json": b""}), "new.json exists, and is not locked"),
    "one less": (lambda files: files.pop("config.json"), "config.json is locked, and does not exist"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_drift_is_refused_with_file_and_difference(
    read: Read, place: dict[str, bytes], change: str, is_frozen: bool
) -> None:
    """Whatever changed in the store since, with `--frozen` and without."""
    write_lock(read())
    apply, difference = CHANGES[change]
    apply(place)
    config = _frozen(read()) if is_frozen else read()

    with pytest.raises(ArtifactChangedError) as caught:
        pull_models(config)
    assert difference in str(caught.value)
    assert str(caught.value).startswith("memory://place: differs from appliance.lock: ")
    assert "appliance lock FILE" in str(caught.value)


def test_drift_is_refused_before_anything_is_fetched(read: Read, place: dict[str, bytes], cache: Cache) -> None:
    """Where the listing shows it already, nobody waits for bytes that are refused."""
    write_lock(read())
    place["model.safetensors"] = b"other weights"
    before = sorted(cache.root.rglob("*"))

    with pytest.raises(ArtifactChangedError, match=r"model\.safetensors has 13 bytes"):
        pull_models(read())
    assert sorted(cache.root.rglob("*")) == before


def test_what_is_locked_is_pulled(read: Read, place: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """Without drift a lock changes nothing."""
    write_lock(read())

    pull_models(_frozen(read()))
    assert "a model: /" in capsys.readouterr().out


def test_frozen_refuses_what_is_not_locked(read: Read, place: dict[str, bytes], tmp_path: Path) -> None:
    """Without a lock, or with one that does not know the storage, nothing is brought."""
    with pytest.raises(StorageError, match=r"memory://place: .*appliance\.lock does not exist.*appliance lock FILE"):
        pull_models(_frozen(read()))
    write_lock(read())
    with pytest.raises(StorageError, match=r"memory://place: not in .*appliance\.lock"):
        pull_models(_frozen(read(include=["*.json"])))


@pytest.mark.parametrize(
    ("text", "fault"), [("{", "is no lock"), ("[]", "is no lock"), ('{"version": 9, "storages": []}', "has version 9")]
)
def test_a_broken_lock_is_not_passed_over(
    read: Read, place: dict[str, bytes], tmp_path: Path, text: str, fault: str
) -> None:
    """A lock that cannot be understood protects nobody, so it is an error."""
    (tmp_path / "appliance.lock").write_text(text)

    with pytest.raises(StorageError, match=fault):
        pull_models(read())


def test_a_branch_stays_at_the_commit_that_is_locked(read: Read, hub: Hub, tmp_path: Path) -> None:
    """`hf://` without a revision means the locked commit, also when the branch has moved."""
    hub.repositories["org/model"] = model = Repository()
    commit = model.commit({"config.json": b"old", "model.safetensors": b"old weights"})
    write_lock(read("hf://org/model"))
    model.commit({"config.json": b"new", "model.safetensors": b"new weights"})

    config = read("hf://org/model")
    (path,) = ModelFactory().materialize(config.models[0], config.storage, lambda *_: None).values()
    assert (path / "model.safetensors").read_bytes() == b"old weights"
    assert json.loads((tmp_path / "appliance.lock").read_text())["storages"][0]["revision"] == commit


def test_files_in_place_are_held_by_their_sizes_to_start_at_once(read: Read, tmp_path: Path) -> None:
    """A mounted volume may be larger than any start can read; `pull` reads it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    config = read(str(model))
    write_lock(config)
    (model / "model.safetensors").write_bytes(b"Weights")

    ModelFactory().materialize(config.models[0], config.storage, lambda *_: None)
    with pytest.raises(ArtifactChangedError, match=r"model\.safetensors has the SHA-256"):
        pull_models(config)
    (model / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(ArtifactChangedError, match="has 6 bytes, and 7 are locked"):
        ModelFactory().materialize(config.models[0], config.storage, lambda *_: None)


def test_the_digest_that_pull_prints_can_be_pinned(
    read: Read, place: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a directory and of one file, where it is the file's own SHA-256; other bytes are refused."""
    printed = []
    for uri in ("memory://place", "memory://place/model.safetensors"):
        pull_models(read(uri))
        printed.append(capsys.readouterr().out.strip().rpartition("digest: ")[2])
    for uri, digest in zip(("memory://place", "memory://place/model.safetensors"), printed, strict=True):
        pull_models(read(uri, digest=digest))
    place["model.safetensors"] = WITHOUT_TENSORS + b"Weights" * 100

    assert printed[1] == f"sha256:{hashlib.sha256(FILES['model.safetensors']).hexdigest()}"
    for uri, digest in zip(("memory://place", "memory://place/model.safetensors"), printed, strict=True):
        with pytest.raises(ArtifactChangedError, match=f"storage.digest is {digest}"):
            pull_models(read(uri, digest=digest))


def test_the_commands_lock_and_hold(tmp_path: Path) -> None:
    """`appliance lock`, then `pull --frozen`: 0, and 17 when a file has changed."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(WITHOUT_TENSORS + b"weights")
    file = tmp_path / "config.yaml"
    file.write_text(f"models: [{{name: a, class: generative, storage: {{uri: {model}}}}}]\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return run_appliance(*words, file)

    unlocked = run("pull", "--frozen")
    locked = run("lock")
    good = run("pull", "--frozen")
    (model / "model.safetensors").write_bytes(WITHOUT_TENSORS + b"Weights")
    changed = run("pull", "--frozen")

    assert (unlocked.returncode, "appliance.lock does not exist" in unlocked.stderr) == (3, True)
    assert (locked.returncode, locked.stdout) == (0, f"{tmp_path}/appliance.lock: 1 storage, 1 file\n")
    assert (good.returncode, good.stderr) == (0, "")
    assert (changed.returncode, "differs from appliance.lock" in changed.stderr) == (17, True)
    assert "Traceback" not in changed.stderr
