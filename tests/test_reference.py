"""The generated reference and the site are whole: nothing is stale, undescribed or linked to nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from config_reference import ConfigReference
from server_process import environment

ROOT = Path(__file__).parent.parent

# Variables of Python and of libraries, which users do not set for us.
_OF_LIBRARIES = {"CURL_CA_BUNDLE", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "PYTHONPATH"}


def test_the_reference_is_up_to_date() -> None:
    """It is what `just reference` writes from the code."""
    done = subprocess.run(
        [sys.executable, "docs/generate_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert done.returncode == 0


def test_every_key_has_an_example() -> None:
    """`examples/everything.yaml` shows each key of the schema."""
    assert ConfigReference((ROOT / "examples/everything.yaml").read_text()).without_example() == []


def test_every_log_event_is_described() -> None:
    """The reference says what each event means, and names none that is gone."""
    rows = re.findall(
        r"^\| `(\S+)` \| .* \| (.*) \|$", (ROOT / "docs/reference/log-events.md").read_text(), re.MULTILINE
    )
    code = "".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py"))

    assert [name for name, meaning in rows if not meaning or f'"{name}"' not in code] == []


def test_every_environment_variable_is_listed() -> None:
    """The page has each variable that the code reads by its name."""
    page = (ROOT / "docs/reference/environment.md").read_text()
    patterns = [name for cell in re.findall(r"^\| `([^`]+)`", page, re.MULTILINE) for name in cell.split(", ")]
    reads = re.compile(
        r'environ(?:ment)?(?:\.get\(|\.setdefault\(|\[)"([A-Z_0-9]+)"|"([A-Z_0-9]+)" (?:not )?in os\.environ'
    )
    found = {
        name
        for path in (ROOT / "appliance").rglob("*.py")
        for match in reads.findall(path.read_text())
        for name in match
        if name and name not in _OF_LIBRARIES
    }

    assert [name for name in sorted(found) if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_site_builds(tmp_path: Path) -> None:
    """Every link and anchor leads somewhere, every page is in the navigation, and nothing comes from another host."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**environment(), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    loaded = [
        url for text in pages for url in re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="?(https?://[^" >]+)', text)
    ]

    assert done.returncode == 0, done.stderr
    assert pages
    assert loaded == []
