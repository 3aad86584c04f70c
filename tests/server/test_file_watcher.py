"""Whether files hold something else than what was read."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.server.reload import FileWatcher


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was read."""
    file = tmp_path / "a.yaml"
    file.write_text("one")
    return file


def _watch(file: Path) -> FileWatcher:
    return FileWatcher({file: sha256(file.read_bytes()).hexdigest()})


def test_a_change_counts_once_it_holds_still(file: Path) -> None:
    """What is different at each look is still being written; what was only touched is no change."""
    watch = _watch(file)
    file.touch()
    looks = [watch.has_changed()]
    for text in ("two", "three", "three", "three"):
        file.write_text(text)
        looks.append(watch.has_changed())

    assert looks == [False, False, False, True, True]


def test_what_was_read_is_no_change_any_more(file: Path) -> None:
    """Neither when it was good, nor, for a while, when it was not."""
    watch = _watch(file)
    file.write_text("two")
    watch.start_reading()

    assert [watch.has_changed(), watch.has_changed()] == [False, False]
    watch.accept({file: sha256(b"two").hexdigest()})
    assert [watch.has_changed(), watch.has_changed()] == [False, False]


def test_a_change_before_the_first_look_is_seen(file: Path) -> None:
    """What counts is what was read, not what was there when the watch began."""
    watch = FileWatcher({file: sha256(b"zero").hexdigest()})

    assert [watch.has_changed(), watch.has_changed()] == [False, True]


def test_a_file_that_is_gone_is_a_change(file: Path) -> None:
    """The walk that reads it says what that means."""
    watch = _watch(file)
    file.unlink()

    assert [watch.has_changed(), watch.has_changed()] == [False, True]


def test_what_takes_long_to_be_found_wrong_is_seldom_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong file is read again for a file that it lacked, and never takes more than a twentieth of a core."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = _watch(file)
    watch.start_reading()
    now += 2
    watch.reject()

    now += 37
    assert not watch.has_changed()
    now += 2
    assert watch.has_changed()
