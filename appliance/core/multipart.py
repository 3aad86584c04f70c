"""The fields of ``multipart/form-data`` (RFC 7578), and where their values stand in its bytes.

A form that two parsers could read differently is refused: what is checked here must be what an upstream reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser

MEDIA_TYPE = "multipart/form-data"

MOST_PARTS = 1000
"""
More than any form of OpenAI's protocol has, where nobody says how many are allowed.
"""

_MEDIA_TYPE = re.compile(r"\s*multipart/form-data\s*(?:;|$)", re.IGNORECASE)
_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([^"\\]*)"|([^\s;"]*))', re.IGNORECASE)

# RFC 7578, section 4.2: no `name*`, which it forbids, and no escape in a name, which parsers read differently.
_DISPOSITION = re.compile(
    r'form-data\s*;\s*name\s*=\s*(?:"([^"\\]*)"|([^\s;"\\]+))'
    r'(\s*;\s*filename\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;"\\]+))?(?:\s*;\s*filename\*\s*=\s*[^\s;"\\]+)?\s*',
    re.IGNORECASE,
)

# RFC 7578, section 4.7, deprecates any other, and few parsers know them.
_PLAIN = frozenset({"7bit", "8bit", "binary"})

_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})

# A list is several fields of one name, which ends in this in OpenAI's protocol.
_OF_LISTS = "[]"


class FormError(ValueError):
    """The bytes are no form, or not one that everybody reads alike."""


@dataclass(frozen=True, slots=True)
class FormField:
    """One value, by its place in the body."""

    name: str
    span: slice
    is_file: bool


def is_form(content_type: str) -> bool:
    """The body is a form."""
    return _MEDIA_TYPE.match(content_type) is not None


def read(body: bytes, content_type: str, most_parts: int = MOST_PARTS) -> Mapping[str, FormField]:
    """The fields by their names; of a list the last.

    Raises:
        FormError: it is no form, a field stands there twice, or there are too many.
    """
    boundary = _boundary(content_type)
    fields: dict[str, FormField] = {}
    for field in _fields(body, boundary, most_parts):
        if field.name in fields and not field.name.endswith(_OF_LISTS):
            raise FormError(f"The form has the field {field.name[:80]!r} twice; send it once")
        fields[field.name] = field
    return fields


def text_of(body: bytes, field: FormField | None) -> str | None:
    """The value of a field; None where there is none.

    Raises:
        FormError: it is a file, or no text in UTF-8.
    """
    if field is None:
        return None
    if field.is_file:
        raise FormError(f"The field {field.name!r} of the form is a file; it must be a text")
    try:
        return body[field.span].decode()
    except UnicodeDecodeError as error:
        raise FormError(f"The field {field.name!r} of the form is no text in UTF-8") from error


def _boundary(content_type: str) -> bytes:
    found: list[tuple[str, str]] = _BOUNDARY.findall(content_type)
    if len(found) != 1 or not (boundary := found[0][0] or found[0][1]):
        raise FormError(f"Content-Type is {content_type[:80]!r}; it must be {MEDIA_TYPE} with one boundary")
    if not boundary.isascii() or not boundary.isprintable():
        raise FormError("The boundary in Content-Type has characters that a boundary cannot have")
    return boundary.encode()


def _fields(body: bytes, boundary: bytes, most_parts: int) -> Iterator[FormField]:
    parser = PushMultipartParser(boundary, max_segment_count=most_parts, strict=True)
    # In a form that the parser takes, the delimiter stands between parts and nowhere else.
    delimiter = b"\r\n--" + boundary
    if not body.startswith((delimiter, delimiter[2:])):
        raise FormError("The body does not begin with the boundary that its Content-Type says")
    place = 0 if body.startswith(delimiter) else -2
    try:
        with parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    start = body.index(b"\r\n\r\n", place + 2) + 4
                    if body.startswith(delimiter[2:], start):
                        raise FormError("A part of the form ends before its value begins")
                    place = body.find(delimiter, start)
                    yield _field(event, slice(start, place))
    except ParserLimitReached as error:
        raise FormError(f"The form has more than {most_parts} parts, or headers of a part that are too long") from error
    except MultipartError as error:
        # The parser's words are for those who read its code.
        raise FormError(
            "The body is not the form that its Content-Type says; "
            "it ends early, or a part has no header Content-Disposition: form-data, or one on several lines"
        ) from error
    if body[place + len(delimiter) + 2 :].strip():
        raise FormError("The body goes on after the end of the form")


def _field(segment: MultipartSegment, span: slice) -> FormField:
    headers = [name for name, _ in segment.headerlist]
    if headers.count("Content-Disposition") != 1:
        raise FormError('A part of the form must have one header Content-Disposition: form-data; name="..."')
    said = segment.header("Content-Disposition", "")
    disposition = _DISPOSITION.fullmatch(said)
    if disposition is None:
        raise FormError(
            f"A part of the form has the Content-Disposition {said[:80]!r}; "
            'it must be form-data; name="...", and its name without a backslash'
        )
    encoding = segment.header("Content-Transfer-Encoding", "binary").strip().lower()
    if encoding not in _PLAIN:
        raise FormError(f"A part of the form is encoded as {encoding[:40]!r}; it must be sent as it is")
    if (segment.charset or "utf-8").lower() not in _CHARSETS:
        raise FormError(f"A part of the form has the charset {segment.charset!r:.40}; it must be UTF-8")
    name, bare, file = disposition.groups()
    return FormField(bare if name is None else name, span, is_file=file is not None)
