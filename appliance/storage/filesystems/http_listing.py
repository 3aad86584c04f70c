"""Listings of a directory on a web server: a `SHA256SUMS`, or the index page that the server makes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from urllib.parse import unquote

from yarl import URL

from appliance.core.errors import ArtifactCorruptError
from appliance.storage.path_safety import name_error

SUMS = "SHA256SUMS"

# As GNU coreutils writes it, and as BSD's tools do (`sha256sum --tag`).
_SUMS_LINE = re.compile(
    r"(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<tagged>.+)\) = (?P<tag>[0-9a-fA-F]{64})"
)

# The titles of nginx, Apache and lighttpd, and of Python's http.server.
_INDEX_TITLE = re.compile(r"\s*(?:index of|directory listing for)\b", re.IGNORECASE)


def parse_sums(uri: str, text: str) -> Mapping[str, str]:
    """Return the digest of each file by its name, in the order of a `SHA256SUMS`."""
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (found := _SUMS_LINE.fullmatch(line)):
            raise ArtifactCorruptError(f"{uri}: line {number} of {SUMS} is no line of sha256sum; create it again")
        name = (found["name"] or found["tagged"]).removeprefix("./")
        if error := name_error(name):
            raise ArtifactCorruptError(f"{uri}: the file {name!r} in {SUMS} {error}; the model is refused")
        sums[name] = (found["sum"] or found["tag"]).lower()
    # The shell creates the file before sha256sum searches for files, so it often lists itself.
    sums.pop(SUMS, None)
    return sums


def parse_index(url: URL, page: str) -> Sequence[str] | None:
    """Return the names on the index page of a directory, with `/` after those of directories.

    None if it is another kind of page. Everything that is not directly in the directory is left out: parents, other
    hosts, and queries, which sort the page.
    """
    parser = _IndexParser()
    parser.feed(page)
    if not _INDEX_TITLE.match(parser.title):
        return None
    names = (_name_in(url, link) for link in parser.links)
    return tuple(dict.fromkeys(name for name in names if name))


class _IndexParser(HTMLParser):
    """Collects the title and the targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.links: list[str] = []
        self._is_in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_in_title = tag == "title"
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, _tag: str) -> None:
        self._is_in_title = False

    def handle_data(self, data: str) -> None:
        if self._is_in_title:
            self.title += data


def _name_in(directory: URL, link: str) -> str | None:
    """Return the name that a link has in a directory, or None if it leads elsewhere."""
    try:
        target = directory.join(URL(link))
        is_elsewhere = target.origin() != directory.origin() or bool(target.raw_query_string)
    except ValueError:
        return None
    # Decoded, because servers escape names in different ways.
    path, start = unquote(target.raw_path), unquote(directory.raw_path)
    if is_elsewhere or not path.startswith(start):
        return None
    name = path[len(start) :]
    plain = name.removesuffix("/")
    return None if not plain or "/" in plain or name_error(plain) else name
