"""Archives made by enemies."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.core.errors import ArtifactCorruptError, ArtifactNotFoundError, StorageError
from appliance.storage.archives import ArchiveLimits, extract

quiet = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def pack(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """A zip archive with these members, whatever their names."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for member, data in members:
            info = member if isinstance(member, zipfile.ZipInfo) else zipfile.ZipInfo("placeholder")
            if isinstance(member, str):
                info.filename = info.orig_filename = member  # past ZipInfo's own cleaning
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


def unpack(archive: Path, inside: str, target: Path) -> dict[str, bytes]:
    """Extract, and read back what came out."""
    target.mkdir(exist_ok=True)
    extract(archive, inside, target, lambda *_: None)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


MEMBERS = (("pkg/model/a.bin", b"a"), ("pkg/model/deep/b.bin", b"b"), ("pkg/model2/c.bin", b"c"), ("top", b"t"))


@pytest.mark.parametrize(
    ("inside", "names"),
    [
        ("", ["pkg/model/a.bin", "pkg/model/deep/b.bin", "pkg/model2/c.bin", "top"]),
        ("pkg/model", ["pkg/model/a.bin", "pkg/model/deep/b.bin"]),
        ("pkg/model/a.bin", ["pkg/model/a.bin"]),
        ("top", ["top"]),
    ],
)
def test_only_what_is_wanted_comes_out(tmp_path: Path, inside: str, names: list[str]) -> None:
    """A path is a whole name, or whole directories: `pkg/model` is no part of `pkg/model2`."""
    archive = pack(tmp_path / "a.zip", *MEMBERS)

    assert sorted(unpack(archive, inside, tmp_path / "out")) == names


def test_a_path_that_is_not_there_is_guessed(tmp_path: Path) -> None:
    """A misspelt path gets a did-you-mean."""
    archive = pack(tmp_path / "a.zip", *MEMBERS)

    with pytest.raises(ArtifactNotFoundError, match="has no 'pkg/modle'; did you mean \"pkg/model\""):
        unpack(archive, "pkg/modle", tmp_path / "out")


def test_a_path_like_nothing_inside_lists_the_largest_files(tmp_path: Path) -> None:
    """Who has no idea what is inside is shown where the weights are."""
    archive = pack(tmp_path / "a.zip", ("readme", b"r"), ("x/weights.gguf", b"w" * 999))

    with pytest.raises(ArtifactNotFoundError, match=r"its largest files are 'x/weights\.gguf'"):
        unpack(archive, "0000000", tmp_path / "out")


plain_text = st.text("abc./", max_size=8)
hostile_names = st.one_of(
    st.tuples(st.sampled_from(["/", "//", "C:", "c:/", "../"]), plain_text),
    st.tuples(plain_text, st.sampled_from(["/../", "\\", "\0", "/..\\"]), plain_text),
    st.tuples(plain_text, st.just("/..")),
).map("".join)


@given(name=hostile_names)
@quiet
def test_a_hostile_name_condemns_the_archive(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """One name that leads elsewhere, and nothing at all is written, not even the good members."""
    place = tmp_path_factory.mktemp("hostile")
    archive = pack(place / "a.zip", ("good", b"g"), (name, b"evil"))

    with pytest.raises(ArtifactCorruptError, match="refused"):
        unpack(archive, "", place / "out")
    assert sorted(path.name for path in place.rglob("*")) == ["a.zip", "out"]


@given(st.lists(st.tuples(st.text("ab./\\:\0C\u20ac", min_size=1), st.binary(max_size=10)), min_size=1, max_size=5))
@quiet
def test_any_archive_stays_inside_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]]
) -> None:
    """Whatever names an archive has, no file appears beside the target, and only our errors come out."""
    place = tmp_path_factory.mktemp("any")
    archive = pack(place / "a.zip", *members)

    with suppress(StorageError):
        unpack(archive, "", place / "out")
    assert {path.name for path in place.iterdir()} <= {"a.zip", "out"}


@given(data=st.data())
@quiet
def test_flipped_bytes_never_pass_for_the_model(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """An archive damaged anywhere gives the right bytes or one of our errors, never wrong bytes."""
    place = tmp_path_factory.mktemp("flip")
    whole = pack(place / "a.zip", ("model.bin", b"weights" * 50)).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= data.draw(st.integers(1, 255))
    (place / "a.zip").write_bytes(bytes(damaged))

    try:
        came_out = unpack(place / "a.zip", "", place / "out")
    except StorageError:
        return
    assert list(came_out.values()) in ([b"weights" * 50], [])


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    """A member that is a link could lead a later one out of the target."""
    member = zipfile.ZipInfo("link")
    member.external_attr = (kind | 0o777) << 16
    archive = pack(tmp_path / "a.zip", (member, b"/etc"))

    with pytest.raises(ArtifactCorruptError, match="is a link or a device"):
        unpack(archive, "", tmp_path / "out")


@pytest.mark.parametrize("names", [("a", "a"), ("a/b", "a//b"), ("a/b", "a/./b"), ("a", "a/b"), ("a/b", "a")])
def test_members_that_share_a_place_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    """Where two members want one name, no reader agrees with another on the contents."""
    archive = pack(tmp_path / "a.zip", *((name, name.encode()) for name in names))

    with pytest.raises(ArtifactCorruptError, match="refused"):
        unpack(archive, "", tmp_path / "out")


def test_a_wrong_checksum_is_found(tmp_path: Path) -> None:
    """Bytes that do not match their CRC are an error, though everything else is in order."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.bin", b"right bytes")
    raw = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(raw.replace(b"right", b"wrong"))

    with pytest.raises(ArtifactCorruptError, match="CRC"):
        unpack(tmp_path / "a.zip", "", tmp_path / "out")


def test_a_member_shorter_than_promised_is_found(tmp_path: Path) -> None:
    """A size that is a lie is an error, though the bytes there are match their CRC."""
    raw = bytearray(pack(tmp_path / "a.zip", ("model.bin", b"x" * 100)).read_bytes())
    directory = raw.index(b"PK\x01\x02")
    raw[directory + 24] = 200
    (tmp_path / "a.zip").write_bytes(bytes(raw))

    with pytest.raises(ArtifactCorruptError, match=r"model\.bin has 100 bytes and should have 200"):
        unpack(tmp_path / "a.zip", "", tmp_path / "out")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    """There is nobody to ask for a password."""
    member = zipfile.ZipInfo("secret")
    raw = bytearray(pack(tmp_path / "a.zip", (member, b"x")).read_bytes())
    directory = raw.index(b"PK\x01\x02")
    raw[directory + 8] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(raw))

    with pytest.raises(ArtifactCorruptError, match="encrypted"):
        unpack(tmp_path / "a.zip", "", tmp_path / "out")


def test_what_is_no_archive_is_corrupt(tmp_path: Path) -> None:
    """An HTML page with the name of a wheel is no wheel."""
    (tmp_path / "a.whl").write_text("<html>please log in</html>")

    with pytest.raises(ArtifactCorruptError, match="not a sound zip archive"):
        unpack(tmp_path / "a.whl", "", tmp_path / "out")


def test_an_archive_larger_than_the_disk_is_refused_beforehand(tmp_path: Path) -> None:
    """The room is checked before the first byte, from the sizes the archive promises."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.bin", b"x")
        archive.getinfo("model.bin").file_size = 1 << 42
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())

    (tmp_path / "out").mkdir()

    with pytest.raises(StorageError, match=r"4,398,046,511,104 bytes to write.*free some space"):
        extract(tmp_path / "a.zip", "", tmp_path / "out", limits=ArchiveLimits(min_ratio_bytes=1 << 43))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (ArchiveLimits(files=2), "more than 2 members"),
        (ArchiveLimits(size=100), "more than 100 bytes"),
        (ArchiveLimits(min_ratio_bytes=100, ratio=2), "more than 2 times its"),
    ],
)
def test_bombs_are_refused_before_they_go_off(tmp_path: Path, limits: ArchiveLimits, fault: str) -> None:
    """Too many members, too many bytes, or far more than were packed; nothing is written."""
    archive = pack(tmp_path / "a.zip", *((name, bytes(4000)) for name in "abc"))
    (tmp_path / "out").mkdir()

    with pytest.raises(ArtifactCorruptError, match=fault):
        extract(archive, "", tmp_path / "out", limits=limits)
    assert list((tmp_path / "out").iterdir()) == []


def test_members_that_overlap_are_a_bomb(tmp_path: Path) -> None:
    """Many names for the same packed bytes unpack to more than any honest archive of this size."""
    raw = pack(tmp_path / "a.zip", ("00000", bytes(100_000))).read_bytes()
    start, end = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")
    entries = [raw[start:end].replace(b"00000", b"%05d" % number) for number in range(500)]
    directory = b"".join(entries)
    counts = len(entries).to_bytes(2, "little") * 2 + len(directory).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(raw[:start] + directory + raw[end : end + 8] + counts + raw[end + 16 :])
    (tmp_path / "out").mkdir()

    with pytest.raises(ArtifactCorruptError, match="more than 100 times its"):
        extract(tmp_path / "a.zip", "", tmp_path / "out", limits=ArchiveLimits(min_ratio_bytes=1_000_000))


def test_a_directory_too_long_to_read_is_refused(tmp_path: Path) -> None:
    """zipfile reads the whole list of members into memory, so its length is looked at before."""
    archive = pack(tmp_path / "a.zip", *((f"{number:0300}", b"") for number in range(10)))

    with pytest.raises(ArtifactCorruptError, match="more than 5 members"):
        extract(archive, "", tmp_path / "out", limits=ArchiveLimits(files=5))
