"""The error tree: what is drawn is what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from appliance.core import errors
from appliance.core.errors import ApplianceError, StorageError

_ROW = re.compile(r"^ {4}(?P<rank>[│├└─ ]*)(?P<name>\w+Error)\s+(?P<status>\d{3})?\s*(?:exit (?P<code>\d+))?")


def rows() -> list[re.Match[str]]:
    """The lines of the drawing."""
    return [found for line in (errors.__doc__ or "").splitlines() if (found := _ROW.match(line))]


def below(error: type[ApplianceError]) -> Iterator[type[ApplianceError]]:
    """An error and everything under it, of our own."""
    yield error
    for each in error.__subclasses__():
        if each.__module__.startswith(errors.__name__):
            yield from below(each)


def test_the_drawing_has_every_error_once() -> None:
    """A new error is drawn where it belongs, or this test says so."""
    assert sorted(row["name"] for row in rows()) == sorted(error.__name__ for error in below(ApplianceError))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["name"])
def test_the_drawing_tells_status_and_exit_code(row: re.Match[str]) -> None:
    """Where a line has a number, the class has it, too."""
    error = getattr(errors, row["name"])

    assert row["status"] is None or error.status == int(row["status"])
    assert row["code"] is None or error.exit_code == int(row["code"])


def test_a_line_stands_under_what_it_derives_from() -> None:
    """Each branch of the drawing is one step of inheritance."""
    above: dict[int, str] = {}
    for row in rows():
        depth = len(row["rank"])
        above[depth] = row["name"]
        if depth:
            parent = above[max(rank for rank in above if rank < depth)]
            assert getattr(errors, row["name"]).__base__.__name__ == parent


def test_each_fault_of_storage_has_an_exit_code_of_its_own() -> None:
    """Whoever runs `appliance pull` in a script can tell them apart."""
    codes = [error.exit_code for error in below(StorageError)]

    assert len(set(codes)) == len(codes)
