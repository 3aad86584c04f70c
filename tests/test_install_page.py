"""The page about installing lists what pyproject.toml has."""

from __future__ import annotations

import re
import tomllib

from distributions import ROOT

PAGE = (ROOT / "docs/install.md").read_text(encoding="utf-8")


def _rows() -> dict[str, list[str]]:
    """The columns of the table of extras, by the extra."""
    table = PAGE.partition("## Extras")[2]
    lines = re.findall(r"^\|(.*)\|$", table, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {extra.strip("`"): rest for extra, *rest in rows if extra.startswith("`")}


def _declared() -> dict[str, set[str]]:
    """What each extra requires, by the names of distributions or of other extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {extra: {name for each in requirements for name in _names(each)} for extra, requirements in extras.items()}


def _names(requirement: str) -> list[str]:
    name, _, extras = requirement.partition("[")
    return re.findall(r"[\w-]+", extras) if extras else re.findall(r"^[\w-]+", name)


def test_its_table_has_every_extra_and_what_it_installs() -> None:
    """A new extra, or a new requirement of one, must be added to the page."""
    assert {extra: set(re.findall(r"`([^`]+)`", cells[0])) for extra, cells in _rows().items()} == _declared()


def test_every_extra_has_a_size_and_a_purpose() -> None:
    """As measured in a fresh environment."""
    assert all(re.fullmatch(r"[\d.]+ [GM]B", cells[1]) and cells[2] for cells in _rows().values())
