"""From the URL people write to the URL that is asked."""

from __future__ import annotations

import re

from yarl import URL

# v1, v4, v1beta, as the last part or within, such as ``/v1beta/openai``.
_VERSION = re.compile(r"v\d+[a-z0-9]*")


def join(base: str, path: str, query: str = "") -> URL:
    """
    The URL of a route such as ``/v1/embeddings`` or ``/tokenize`` under an OpenAI base URL with or without a version.

    A path of version 1 goes under the base's own version; any other goes beside it.
    The base's query, which some services keep their API's version in, comes before the caller's.
    """
    url = URL(base)
    parts = [part for part in url.raw_path.split("/") if part]
    if not any(_VERSION.fullmatch(part) for part in parts):
        parts.append("v1")
    if path.startswith("/v1/"):
        path = path.removeprefix("/v1")
    elif _VERSION.fullmatch(parts[-1]):
        parts.pop()
    queries = "&".join(part for part in (url.raw_query_string, query) if part)
    whole = f"{url.origin()}/{'/'.join(parts)}".rstrip("/") + path
    return URL(f"{whole}?{queries}" if queries else whole, encoded=True)
