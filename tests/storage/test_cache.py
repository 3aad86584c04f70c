"""The cache: made once, complete or not at all."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.core.disk import ignore_progress
from appliance.core.errors import ArtifactCorruptError, StorageError
from appliance.storage import Cache, sha256_in_cache, verify
from appliance.storage.cache import name_of


class StopError(Exception):
    """What a report raises to stop the work."""


def fill(files: Path) -> None:
    """Make a small model."""
    (files / "deep").mkdir()
    (files / "config.json").write_text("{}")
    (files / "deep" / "weights").write_bytes(b"w" * 1000)


def never(files: Path) -> None:
    """Make nothing, and fail the test."""
    pytest.fail("made although it was there already")


def visible(cache: Cache) -> list[str]:
    """Every artifact in the cache, and what is left of unfinished ones."""
    return sorted(path.name for path in cache.root.iterdir() if not path.name.startswith("."))


def test_an_artifact_is_made_once(cache: Cache) -> None:
    """The second time, the same directory is there already."""
    first = cache.build("a://model", fill, ignore_progress)

    assert cache.build("a://model", never, ignore_progress) == first
    assert (first / "deep" / "weights").read_bytes() == b"w" * 1000


def test_a_name_is_readable_and_unique(cache: Cache) -> None:
    """People find an artifact by its name, and two keys that look alike do not meet."""
    one, other = (
        cache.build(key, fill, ignore_progress).parent.name for key in ("a://org/model?x=1#1", "a://org/model?x=2#2")
    )

    assert one.startswith("org-model-")
    assert other.startswith("org-model-")
    assert one != other


def test_no_secret_is_written_into_the_cache(cache: Cache) -> None:
    """Neither names nor manifests show what a key holds of passwords and signatures."""
    cache.build("a://me:s3cret@host/model?key=s3cret", fill, ignore_progress)

    assert "s3cret" not in "".join(visible(cache))
    assert all(b"s3cret" not in path.read_bytes() for path in cache.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", ["a://..", "a://../../x", "a:///", "a://" + "x" * 999, "a://\udc80"])
def test_no_key_leads_out_of_the_cache(cache: Cache, key: str) -> None:
    """Whatever the key, its directory lies directly in the cache."""
    files = cache.build(key, fill, ignore_progress)

    assert files.parent.parent == cache.root
    assert files.resolve() == files


def break_size(files: Path) -> None:
    (files / "deep" / "weights").write_bytes(b"w" * 999)


def break_name(files: Path) -> None:
    (files / "config.json").unlink()


def break_marker(files: Path) -> None:
    marker = files.parent / "appliance-manifest.json"
    marker.write_text(marker.read_text()[:-10])


def break_entry(files: Path) -> None:
    marker = files.parent / "appliance-manifest.json"
    marker.write_text(marker.read_text().replace("1000", "999"))
    break_size(files)


def break_marker_away(files: Path) -> None:
    (files.parent / "appliance-manifest.json").unlink()


@pytest.mark.parametrize("damage", [break_size, break_name, break_marker, break_entry, break_marker_away])
def test_a_damaged_artifact_is_made_again(cache: Cache, damage: Callable[[Path], None]) -> None:
    """A missing file, a wrong size or a marker that is not as written is noticed on use, logged and repaired."""
    files = cache.build("a://model", fill, ignore_progress)
    damage(files)

    with capture_logs() as events:
        cache.build("a://model", fill, ignore_progress)
    assert (files / "deep" / "weights").read_bytes() == b"w" * 1000
    assert (files / "config.json").exists()
    assert [event["event"] for event in events] == ["artifact.damaged"]
    assert visible(cache) == [files.parent.name]


def test_changed_bytes_are_found_by_a_full_check(cache: Cache) -> None:
    """`verify` reads every byte: it finds what a look at sizes cannot."""
    files = cache.build("a://model", fill, ignore_progress)
    verify(files)
    (files / "deep" / "weights").write_bytes(b"v" * 1000)

    with pytest.raises(ArtifactCorruptError, match="deep/weights: not as it was stored; remove it"):
        verify(files)
    with pytest.raises(ArtifactCorruptError, match="deep/weights"):
        verify(files / "deep" / "weights")


def test_a_full_check_can_be_stopped(cache: Cache) -> None:
    """Reading a large model again takes minutes, and need not be sat out."""
    files = cache.build("a://model", fill, ignore_progress)

    def stop(done: int, total: int | None) -> None:
        raise StopError

    with pytest.raises(StopError):
        verify(files, stop)


def test_a_path_outside_the_cache_has_nothing_to_verify(tmp_path: Path) -> None:
    """A user's own directory comes without promises, also where it has the names of ours."""
    (tmp_path / "files").mkdir()
    (tmp_path / "appliance-manifest.json").write_text("{}")

    verify(tmp_path / "files")
    assert sha256_in_cache(tmp_path / "files" / "x") is None


def test_the_digest_of_a_cached_file_is_known(cache: Cache) -> None:
    """It is the SHA-256 of the file, and costs no reading."""
    files = cache.build("a://model", fill, ignore_progress)

    assert sha256_in_cache(files / "config.json") == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert sha256_in_cache(files) is None


def test_nothing_is_left_when_making_fails(cache: Cache) -> None:
    """The error of whoever makes an artifact passes through, and no trace of the artifact stays."""

    def fail(files: Path) -> None:
        fill(files)
        raise StopError

    with pytest.raises(StopError):
        cache.build("a://model", fail, ignore_progress)
    assert visible(cache) == []


@pytest.mark.parametrize(
    "error", [StopError(), KeyboardInterrupt(), TimeoutError(), ConnectionResetError(104, "reset")]
)
def test_nothing_is_left_when_report_stops_the_sealing(cache: Cache, error: BaseException) -> None:
    """Also the last step can be stopped, and whatever report raises comes out as it is."""

    def stop(done: int, total: int | None) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        cache.build("a://model", fill, stop)
    assert caught.value is error
    assert visible(cache) == []


def test_sealing_reports_that_all_bytes_are_there(cache: Cache) -> None:
    """While digests are taken, progress stands at its end and does not run backwards."""
    reports: list[tuple[int, int | None]] = []

    cache.build("a://model", fill, lambda done, total: reports.append((done, total)))
    assert set(reports) == {(1002, 1002)}


def test_every_user_may_read_what_one_made(cache: Cache) -> None:
    """
    A file that its writer made private gets the mode the umask asks for, as a served cache is often another user's.
    """

    def private(files: Path) -> None:
        (files / "weights").write_text("w")
        (files / "weights").chmod(0o600)

    files = cache.build("a://model", private, ignore_progress)

    assert (files / "weights").stat().st_mode & 0o777 == files.stat().st_mode & 0o666


def test_a_complete_artifact_needs_no_lock(cache: Cache) -> None:
    """A cache on a read-only volume serves what it has: nothing is written for a complete artifact."""
    files = cache.build("a://model", fill, ignore_progress)
    shutil.rmtree(cache.root / ".locks")

    assert cache.build("a://model", never, ignore_progress) == files
    assert not (cache.root / ".locks").exists()


def test_the_manifest_names_every_file_with_size_and_digest(cache: Cache) -> None:
    """The marker is a complete listing anyone can check with sha256sum."""
    files = cache.build("a://model", fill, ignore_progress)

    listing = json.loads((files.parent / "appliance-manifest.json").read_text())["files"]
    assert {name: entry["size"] for name, entry in listing.items()} == {"config.json": 2, "deep/weights": 1000}
    assert all(sha256_in_cache(files / name) == entry["sha256"] for name, entry in listing.items())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/appliance"),
        ({"HOME": "/home/me"}, "/home/me/.cache/appliance"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/appliance"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/appliance"),
    ],
)
def test_the_default_lies_under_the_cache_home(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    """Without a directory in the config, the XDG base directory specification says where."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert Cache.at(None).root == Path(expected)


def test_a_directory_of_the_config_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It may begin with `~` or be relative, and is absolute from then on."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)

    assert Cache.at(Path("~/models")).root == Path("/home/me/models")
    assert Cache.at(Path("models")).root == tmp_path / "models"


AS_SOMEONE_ELSE = """
import os, sys
from pathlib import Path
from appliance.core.errors import StorageError
from appliance.storage import Cache
for name in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
os.setuid(int(sys.argv[1]))
try:
    Cache.at(Path(sys.argv[2]) if sys.argv[2:] else None).build("a://model", lambda files: None, lambda *report: None)
except StorageError as error:
    print(error)
"""


def nobody(*arguments: object) -> str:
    """What a user without any rights is told."""
    command = [sys.executable, "-c", AS_SOMEONE_ELSE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_cache_that_cannot_be_written_says_whose_fault_it_is() -> None:
    """The message has the directory and both remedies."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        said = nobody(65534, f"{directory}/cache")

    assert f"{directory}/cache: Permission denied; change its owner or mode, or point storage.cache_dir" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_home_is_told_what_to_set() -> None:
    """Containers run with user numbers nobody has a home for."""
    unknown = next(number for number in range(61000, 62000) if number not in {user.pw_uid for user in pwd.getpwall()})

    assert "no home directory; set storage.cache_dir" in nobody(unknown)


def test_a_file_where_the_cache_should_be_is_said(tmp_path: Path) -> None:
    """No raw OSError comes out of a cache directory that is none."""
    (tmp_path / "cache").write_text("not a directory")

    with pytest.raises(StorageError, match=r"cache: .*; check the disk and the directory"):
        Cache.at(tmp_path / "cache").build("a://model", fill, ignore_progress)


def test_no_link_of_others_is_written_through(tmp_path: Path) -> None:
    """Whoever may write to the cache cannot have us overwrite other files by links among the locks and the notes."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    cache = Cache.at(tmp_path / "cache")
    name = name_of("s3://bucket/model")
    for place in (cache.root / ".locks" / f"{name}.owner", cache.root / ".notes" / name):
        place.parent.mkdir(parents=True)
        place.symlink_to(precious)

    made = cache.build("s3://bucket/model", lambda files: (files / "a").touch(), lambda _done, _all: None)
    cache.write_note("s3://bucket/model", "a note")

    assert (made / "a").exists()
    assert precious.read_text() == "kept"
