"""Metadata that depends on where the repository is published: its URLs, and absolute links in the README.

PROJECT_URL is the address of the repository, as the release workflow and `just build` set it. Without it the package
has no URLs, and the links of the README stay relative.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE_LINK = re.compile(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)")


class ProjectUrls(MetadataHookInterface):
    """Adds `readme` and `urls` to the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:  # Any: the table of pyproject.toml
        """Add what PROJECT_URL says."""
        home = os.environ.get("PROJECT_URL", "").removesuffix("/").removesuffix(".git")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": _with_absolute_links(text, home)}
        metadata["urls"] = _urls(home)


def _urls(home: str) -> dict[str, str]:
    if not home:
        return {}
    pages = {"Documentation": "tree/main/docs", "Changelog": "blob/main/CHANGELOG.md", "Issues": "issues"}
    return {"Repository": home} | {name: f"{home}/{page}" for name, page in pages.items()}


def _with_absolute_links(text: str, home: str) -> str:
    """Return Markdown whose links to files work outside the repository; images need the raw file."""
    if not home:
        return text
    return _RELATIVE_LINK.sub(
        lambda link: f"{link[1]}({home}/{'raw' if link[1].startswith('!') else 'blob'}/main/{link[2]})", text
    )
