"""Tar archives, sound, broken and made by enemies, in every packing."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.storage.archives import ArchiveLimits, extract, is_archive, root_of

quiet = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "a.tar": lambda raw: raw,
    "a.tar.gz": gzip.compress,
    "a.tgz": gzip.compress,
    "a.tar.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "A.TZST": zstandard.ZstdCompressor(write_checksum=True).compress,
}

MEMBERS = {"model/config.json": b"{}", "model/deep/weights": b"w" * 3_000_000, "model2/x": b"x", "empty": b""}


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A header, whatever it says."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def pack(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of these members, whatever they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sound() -> bytes:
    """An archive as `tar -c .` makes it, its directories included."""
    directories = [(member(name, kind=tarfile.DIRTYPE), b"") for name in ("./", "./model")]
    return pack(*directories, *((member(f"./{name}", len(data)), data) for name, data in MEMBERS.items()))


def unpack(archive: Path, target: Path, inside: str = "", limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    """Extract, and read back what came out."""
    target.mkdir(exist_ok=True)
    extract(archive, inside, target, lambda *_: None, limits or ArchiveLimits())
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.fixture(params=PACKINGS)
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a tar archive in each packing there is."""
    name: str = request.param

    def put(raw: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(PACKINGS[name](raw))
        return path

    return put


def test_everything_comes_out_of_every_packing(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    """Names, bytes, empty files and directories, `./` before the names or not."""
    archive = put(sound())

    assert is_archive(archive.name)
    assert unpack(archive, tmp_path / "out") == MEMBERS


def test_only_what_is_wanted_comes_out(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    """A path is a whole name, or whole directories; one that is not there is guessed."""
    archive = put(sound())

    assert set(unpack(archive, tmp_path / "out", "model")) == {"model/config.json", "model/deep/weights"}
    with pytest.raises(ArtifactNotFoundError, match='did you mean "model/deep"'):
        unpack(archive, tmp_path / "none", "model/deap")


@pytest.mark.parametrize("cut", [0.1, 0.5])
def test_an_archive_that_is_cut_off_is_corrupt(put: Callable[[bytes], Path], tmp_path: Path, cut: float) -> None:
    """Wherever it ends early: in a header or in a member."""
    archive = put(sound())
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * cut)])

    with pytest.raises(ArtifactCorruptError, match="not a sound tar archive"):
        unpack(archive, tmp_path / "out")


def test_an_archive_that_ends_between_two_members_is_corrupt(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    """Whole members and then nothing: the blocks that end every tar archive are missing."""
    raw = pack((member("a", 1), b"a"), (member("b", 1), b"b"))

    with pytest.raises(ArtifactCorruptError, match="its end is missing"):
        unpack(put(raw[:1024]), tmp_path / "out")


def test_a_broken_header_is_no_end(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    """A header in the middle that makes no sense condemns the archive; it does not hide the members after it."""
    raw = bytearray(pack((member("a", 1), b"a"), (member("b", 1), b"b")))
    raw[1024 + 150] ^= 0xFF

    with pytest.raises(ArtifactCorruptError, match="not a sound tar archive"):
        unpack(put(bytes(raw)), tmp_path / "out")


@given(data=st.data())
@quiet
@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.zst"])
def test_flipped_bytes_never_pass_for_the_model(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    """A packed archive damaged anywhere gives the right bytes or one of our errors, never wrong bytes."""
    place = tmp_path_factory.mktemp("flip")
    damaged = bytearray(PACKINGS[name](pack((member("model.bin", 350), b"weights" * 50))))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    (place / name).write_bytes(bytes(damaged))

    try:
        came_out = unpack(place / name, place / "out")
    except StorageError:
        return
    assert list(came_out.values()) == [b"weights" * 50]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "C:x", "a\\b", "a/.."])
def test_a_hostile_name_condemns_the_archive(tmp_path: Path, name: str) -> None:
    """A member that would lie elsewhere is refused, and nothing appears beside the target."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(pack((member(name, 4), b"evil")))

    with pytest.raises(ArtifactCorruptError, match="refused"):
        unpack(archive, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "out"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    """A member that is a link could lead a later one out of the target."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(pack((member("good", 1), b"g"), (member("link", kind=kind, link="/etc"), b"")))

    with pytest.raises(ArtifactCorruptError, match="'link' is a link, a device or sparse; it is refused"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("Model", "model")])
def test_members_that_share_a_place_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    """Where two members want one name, on whatever file system, no reader agrees with another on the contents."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(pack(*((member(name, 1), b"x") for name in names)))

    with pytest.raises(StorageError):
        unpack(archive, tmp_path / "out")


BOMBS = {
    "too many members": (
        [(member(f"{number}"), b"") for number in range(30)],
        ArchiveLimits(files=20),
        "more than 20 members",
    ),
    "too many directories": (
        [(member(f"{number}", kind=tarfile.DIRTYPE), b"") for number in range(30)],
        ArchiveLimits(files=20),
        "more than 20 members",
    ),
    "too large": (
        [(member("a", 3_000_000), bytes(3_000_000))],
        ArchiveLimits(size=2_000_000),
        "more than 2,000,000 bytes",
    ),
    "too dense": (
        [(member("a", 3_000_000), bytes(3_000_000))],
        ArchiveLimits(min_ratio_bytes=1_000_000),
        "more than 100 times its",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(tmp_path: Path, bomb: str) -> None:
    """Too many members, too many bytes, or far more bytes than were packed."""
    members, limits, fault = BOMBS[bomb]
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(pack(*members)))

    with pytest.raises(ArtifactCorruptError, match=fault):
        unpack(archive, tmp_path / "out", limits=limits)


def test_a_bomb_in_a_header_is_refused_without_filling_memory(tmp_path: Path) -> None:
    """A name of 200 megabytes of zeros, a few hundred kilobytes packed, is not even read."""
    size = 200_000_000
    header = member("././@LongLink", size, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    archive = tmp_path / "a.tar.zst"
    with archive.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        writer.write(header)
        for _ in range(size // 1_000_000):
            writer.write(bytes(1_000_000))
    tracemalloc.start()

    with pytest.raises(ArtifactCorruptError, match="a header of 200000000 bytes"):
        unpack(archive, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_large_members_go_through_little_memory(tmp_path: Path) -> None:
    """A member of 64 MB is written in blocks, and never held whole."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(pack((member("weights", 64 << 20), bytes(64 << 20))))
    (tmp_path / "out").mkdir()
    tracemalloc.start()

    extract(archive, "", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert (tmp_path / "out/weights").stat().st_size == 64 << 20


def test_what_the_caller_raises_passes_through(tmp_path: Path) -> None:
    """A stop is a stop, and no fault of the archive, whatever kind of exception it is."""
    (tmp_path / "a.tar").write_bytes(sound())
    (tmp_path / "out").mkdir()

    def stop(done: int, total: int | None) -> None:
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        extract(tmp_path / "a.tar", "", tmp_path / "out", stop)


def test_what_is_no_tar_is_corrupt(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    """An HTML page with the name of an archive is none."""
    with pytest.raises(ArtifactCorruptError, match="not a sound tar archive"):
        unpack(put(b"<html>please log in</html>"), tmp_path / "out")


def test_an_unknown_kind_of_archive_is_named(tmp_path: Path) -> None:
    """What cannot be unpacked is refused with what can be."""
    assert not is_archive("model.tar.xz")
    with pytest.raises(StorageError, match=r"known are \.zip, \.tar, "):
        extract(tmp_path / "a.rar", "", tmp_path / "out")


def test_a_model_begins_in_its_only_directory(tmp_path: Path) -> None:
    """`model-1.0/...` in an archive is entered; a model's own directories are not, when files lie beside them."""
    (tmp_path / "wrapped/model-1.0/1_Pooling").mkdir(parents=True)
    (tmp_path / "wrapped/model-1.0/config.json").write_text("{}")

    assert root_of(tmp_path / "wrapped") == tmp_path / "wrapped/model-1.0"
    assert root_of(tmp_path / "wrapped/model-1.0") == tmp_path / "wrapped/model-1.0"
