"""
One field of a form among files: where its value stands in the bytes of ``multipart/form-data`` (RFC 7578).
"""

from __future__ import annotations

import re

_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)
_NAME = re.compile(rb'^content-disposition:[^\r\n]*?[;\s]name="?([^";\r\n]*)"?', re.IGNORECASE | re.MULTILINE)


def is_form(content_type: str) -> bool:
    """
    The body is a form.
    """
    return content_type.lower().startswith("multipart/form-data")


def span_of(body: bytes, content_type: str, name: str) -> slice | None:
    """
    Where the value of a field stands; None where there is no such field, or no form.
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return None
    delimiter = b"--" + (boundary[1] or boundary[2]).encode()
    start = body.find(delimiter)
    while start >= 0:
        start += len(delimiter)
        head = body.find(b"\r\n\r\n", start)
        end = body.find(b"\r\n" + delimiter, start)
        if head < 0 or end < 0:
            return None
        named = _NAME.search(body, start, head)
        if named is not None and named[1] == name.encode():
            return slice(head + 4, end)
        start = end + 2
    return None
