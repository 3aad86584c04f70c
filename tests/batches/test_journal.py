"""The journal of a batch, whatever happens while it is written."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.batches.lines import Journal, LineResult


def _result(name: str, status: int = 200) -> LineResult:
    return LineResult(name, "request", status, b'{"a":\n 1}')


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond this size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_result_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """Once there is room it is written whole."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append(_result("a"))
    size = path.stat().st_size
    with _files_up_to(size + 10), pytest.raises(OSError, match=r".+"):
        journal.append(_result("b"))
    kept = path.stat().st_size
    journal.append(_result("b", 400))
    journal.close()

    assert kept == size
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["a", "b"]
    with closing(Journal(path)) as journal:
        assert (journal.done, journal.failed) == ({"a", "b"}, 1)


@given(st.data())
def test_a_journal_that_was_cut_continues(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Wherever it was cut: whole lines are kept, and the others can be added again."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    names = data.draw(st.lists(st.text(min_size=1, max_size=5), max_size=6, unique=True))
    journal = Journal(path)
    for name in names:
        journal.append(_result(name))
    journal.close()
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut] + data.draw(st.binary(max_size=8)).replace(b"\n", b"") * (cut < len(content)))

    journal = Journal(path)
    kept = set(journal.done)
    for name in names:
        if name not in kept:
            journal.append(_result(name))
    journal.close()

    assert kept == set(names[: content[:cut].count(b"\n")])
    assert sorted(json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()) == sorted(names)
