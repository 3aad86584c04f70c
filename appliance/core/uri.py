"""What can be read off a URI without knowing its scheme."""

from __future__ import annotations

import re
from collections.abc import Iterator

# `file:/path` is as good as `file:///path` (RFC 8089, appendix B); all other schemes need the `//`,
# so that a plain path such as `runs/monday:9` stays a path. fsspec chains filesystems: `zip::s3://bucket/model.zip`.
_SCHEME = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)(?=://|::\S*://)|(file):/)", re.IGNORECASE)

# Passwords are often pasted unescaped, so `@`, `/`, `?` and `#` may be part of one: after a user name and a colon that
# does not begin a port, everything up to the last `@` is taken for the password.
# What Azure's drivers write before the `@` is no user and has no password: it is the container.
_SECRETS = re.compile(
    r"(?P<scheme>(?:abfss?|az)://[a-z0-9$-]+@(?=[A-Za-z0-9.-]+(?:[/?#\s]|$))|[A-Za-z][A-Za-z0-9+.-]*://)"
    r"(?:[^/?#\s@:]*:(?!\d+(?:[/?#\s]|$)|:[A-Za-z][A-Za-z0-9+.-]*://)\S*@|[^/?#\n]*@)?"
    r"(?P<place>(?:(?!::[A-Za-z][A-Za-z0-9+.-]*://)[^\s?])*)"
    # A quote that ends the URI in a sentence is no part of it.
    r"(?:\?[^\s#]*?(?=(?:[\"'][.,;:]?)?(?:[\s#]|$)))?"
)


def scheme_of(uri: str) -> str | None:
    """The scheme in lower case, or None for a plain path."""
    found = _SCHEME.match(uri)
    return (found[1] or found[2]).lower() if found else None


def redact(text: str) -> str:
    """The text with user names, passwords and query strings taken out of every URI in it: fit for logs and messages."""
    return _SECRETS.sub(r"\g<scheme>\g<place>", text)


def secret_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the user names with passwords, and the query strings, of the URIs in a text begin and end."""
    for found in _SECRETS.finditer(text):
        for start, end in ((found.end("scheme"), found.start("place") - 1), (found.end("place") + 1, found.end())):
            if start < end:
                yield start, end


_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"})

# The first parts of paths of the hub that are not owners of models.
_HUB_SECTIONS = frozenset(
    {
        *("api", "blog", "buckets", "collections", "datasets", "docs", "kernels", "learn", "models"),
        *("organizations", "papers", "settings", "spaces", "tasks"),
    }
)

_HUB_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_HUB_PAGE = re.compile(
    rf"https?://(?P<host>[^/?#]+)/(?P<name>{_HUB_NAME})"
    r"(?:/(?:tree|blob)/(?P<revision>[^/?#]+)(?:/(?P<path>[^?#]+))?)?/?(?:[?#].*)?",
    re.ASCII | re.IGNORECASE,
)


def hub_uri_of(page: str, endpoint: str | None = None) -> str | None:
    """Return the `hf://` URI of a model's page on the hub, or on the mirror `endpoint`; None for any other URL."""
    found = _HUB_PAGE.fullmatch(page)
    mirror = (endpoint or "").partition("://")[2].partition("/")[0].rpartition("@")[2]
    if not found or found["host"].lower() not in _HUB_HOSTS | {mirror.lower()}:
        return None
    if found["name"].partition("/")[0].lower() in _HUB_SECTIONS:
        return None
    revision = "" if found["revision"] in (None, "main") else f"@{found['revision']}"
    path = f"/{found['path'].rstrip('/')}" if found["path"] else ""
    return f"hf://{found['name']}{revision}{path}"


def is_hub_name(path: str) -> bool:
    """Return whether a plain path could be the name of a model on the hub, such as `OWNER/NAME`."""
    return re.fullmatch(_HUB_NAME, path, re.ASCII) is not None
