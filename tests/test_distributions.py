"""What users install: the contents and the metadata of the wheel and the source distribution."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
from distributions import ROOT, Distributions

from appliance.core.distribution import NAME, version

pytestmark = pytest.mark.slow


def _tracked(folder: str) -> set[str]:
    """The files of a folder that git knows, or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def test_the_wheel_has_the_package_and_the_schemas_and_nothing_else(distributions: Distributions) -> None:
    """Types, schemas and the files of the page are there; tests and local files are not."""
    schemas = {f"appliance/{name}" for name in _tracked("schemas")}

    assert distributions.wheel_names() == _tracked("appliance") | schemas
    assert {"appliance/py.typed", "appliance/ui/page.html", "appliance/schemas/appliance.schema.json"} <= (
        distributions.wheel_names()
    )


def test_the_source_distribution_has_what_builds_tests_and_documents_it(distributions: Distributions) -> None:
    """It has whole folders of the repository, the project's own pages, and no hidden file but git's list."""
    names = distributions.sdist_names()
    folders = {name.partition("/")[0] for name in names if "/" in name}
    hidden = {name for name in names if re.search(r"(^|/)\.", name)}

    assert folders == {"appliance", "dashboards", "docs", "examples", "requirements", "schemas", "tests"}
    assert all(_tracked(folder) == {name for name in names if name.startswith(f"{folder}/")} for folder in folders)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Justfile", "Containerfile", "PKG-INFO"} <= names
    assert hidden <= {".gitignore"}


def test_the_metadata_tells_what_it_is(distributions: Distributions) -> None:
    """Name, version, licence with its text, Python versions, types, and the README as Markdown."""
    metadata = distributions.metadata
    classifiers = metadata.get_all("Classifier", [])

    assert (metadata["Name"], metadata["Version"]) == (NAME, version())
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(classifiers)
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_its_links_lead_to_the_repository(distributions: Distributions) -> None:
    """PROJECT_URL gives the URLs, and the description has no link that works in the repository alone."""
    urls = dict(line.split(", ", 1) for line in distributions.metadata.get_all("Project-URL", []))
    links = re.findall(r"\]\(([^)\s]+)\)", str(distributions.metadata.get_payload()))

    assert urls.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith("https://git.example.com/a/b") for url in urls.values())
    assert links
    assert [link for link in links if not re.match(r"https?://|#", link)] == []


def test_what_it_requires_is_what_is_declared(distributions: Distributions) -> None:
    """Each extra of pyproject.toml can be named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert set(distributions.extras) == project["optional-dependencies"].keys()
