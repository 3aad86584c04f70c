"""The fields of ``multipart/form-data`` (RFC 7578), and where their values are in the body.

A form that two parsers could read differently is an error: an upstream must read what is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser

MEDIA_TYPE = "multipart/form-data"

MAX_PARTS = 1000
"""Default limit of parts; no form of OpenAI's protocol has that many."""

_MEDIA_TYPE = re.compile(r"\s*multipart/form-data\s*(?:;|$)", re.IGNORECASE)
_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([^"\\]*)"|([^\s;"]*))', re.IGNORECASE)

# RFC 7578, section 4.2, forbids `name*`. Parsers read escapes in a name differently, so they are errors too.
_DISPOSITION = re.compile(
    r'form-data\s*;\s*name\s*=\s*(?:"([^"\\]*)"|([^\s;"\\]+))'
    r'(\s*;\s*filename\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;"\\]+))?(?:\s*;\s*filename\*\s*=\s*[^\s;"\\]+)?\s*',
    re.IGNORECASE,
)

# RFC 7578, section 4.7, deprecates all other encodings, and few parsers support them.
_ENCODINGS = frozenset({"7bit", "8bit", "binary"})

_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})

_NO_FORM = (
    "The body is not a form with the boundary of its Content-Type; "
    "it ends early, or a part has no header Content-Disposition: form-data, or one on several lines"
)

# In OpenAI's protocol a list is several fields of one name that ends in this.
_LIST_SUFFIX = "[]"


class FormError(ValueError):
    """The bytes are not a form, or a form that parsers read differently."""


@dataclass(frozen=True, slots=True)
class FormField:
    """A field, and where its value is in the body."""

    name: str
    span: slice
    is_file: bool
    filename: str | None = None


def is_form(content_type: str) -> bool:
    """Return whether a content type is that of a form."""
    return _MEDIA_TYPE.match(content_type) is not None


def read_form(body: bytes, content_type: str, max_parts: int = MAX_PARTS) -> Mapping[str, FormField]:
    """Return the fields by name; of a list, the last one. Raises FormError if one occurs twice, or for too many."""
    boundary = _boundary(content_type)
    fields: dict[str, FormField] = {}
    for field in _fields(body, boundary, max_parts):
        _require_new(field, fields)
        fields[field.name] = field
    return fields


class FormReader:
    """Reads a form piece by piece, for forms that do not fit in memory; `feed` is called with each, at last b""."""

    def __init__(self, content_type: str, max_parts: int = MAX_PARTS) -> None:
        # Not strict: a strict parser rejects the line break after the form if it comes in a piece of its own.
        self._parser = PushMultipartParser(_boundary(content_type), max_segment_count=max_parts)
        self._field: FormField | None = None
        self._names: set[str] = set()

    def feed(self, data: bytes) -> Iterator[tuple[FormField, bytes]]:
        """Yield fields with pieces of their values, the first one empty; their spans are unknown. Raises FormError."""
        try:
            for event in self._parser.parse(data):
                if isinstance(event, MultipartSegment):
                    self._field = _field(event, slice(0))
                    _require_new(self._field, self._names)
                    self._names.add(self._field.name)
                    yield self._field, b""
                elif event and self._field is not None:
                    yield self._field, bytes(event)
        except MultipartError as error:
            raise FormError(_NO_FORM) from error


def text_value(body: bytes, field: FormField | None) -> str | None:
    """Return the value of a field, None where there is none; raises FormError for a file, and for text not in UTF-8."""
    if field is None:
        return None
    if field.is_file:
        raise FormError(f"The field {field.name!r} of the form is a file; it must be text")
    try:
        return body[field.span].decode()
    except UnicodeDecodeError as error:
        raise FormError(f"The field {field.name!r} of the form is not text in UTF-8") from error


def _require_new(field: FormField, names: Container[str]) -> None:
    if field.name in names and not field.name.endswith(_LIST_SUFFIX):
        raise FormError(f"The form has the field {field.name[:80]!r} twice; send it once")


def _boundary(content_type: str) -> bytes:
    found: list[tuple[str, str]] = _BOUNDARY.findall(content_type)
    if len(found) != 1 or not (boundary := found[0][0] or found[0][1]):
        raise FormError(f"Content-Type is {content_type[:80]!r}; it must be {MEDIA_TYPE} with one boundary")
    if not boundary.isascii() or not boundary.isprintable():
        raise FormError("The boundary in Content-Type has characters that a boundary cannot have")
    return boundary.encode()


def _fields(body: bytes, boundary: bytes, max_parts: int) -> Iterator[FormField]:
    parser = PushMultipartParser(boundary, max_segment_count=max_parts, strict=True)
    # In a form that the parser accepts, the delimiter is between parts and nowhere else.
    delimiter = b"\r\n--" + boundary
    if not body.startswith((delimiter, delimiter[2:])):
        raise FormError("The body does not begin with the boundary of its Content-Type")
    position = 0 if body.startswith(delimiter) else -2
    try:
        with parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    start = body.index(b"\r\n\r\n", position + 2) + 4
                    if body.startswith(delimiter[2:], start):
                        raise FormError("A part of the form ends before its value begins")
                    position = body.find(delimiter, start)
                    yield _field(event, slice(start, position))
    except ParserLimitReached as error:
        raise FormError(f"The form has more than {max_parts} parts, or a part with too long headers") from error
    except MultipartError as error:
        # The parser's own messages name its internals.
        raise FormError(_NO_FORM) from error
    if body[position + len(delimiter) + 2 :].strip():
        raise FormError("The body goes on after the end of the form")


def _field(segment: MultipartSegment, span: slice) -> FormField:
    headers = [name for name, _ in segment.headerlist]
    if headers.count("Content-Disposition") != 1:
        raise FormError('A part of the form must have one header Content-Disposition: form-data; name="..."')
    header = segment.header("Content-Disposition", "")
    disposition = _DISPOSITION.fullmatch(header)
    if disposition is None:
        raise FormError(
            f"A part of the form has the Content-Disposition {header[:80]!r}; "
            'it must be form-data; name="...", and its name must have no backslash'
        )
    encoding = segment.header("Content-Transfer-Encoding", "binary").strip().lower()
    if encoding not in _ENCODINGS:
        raise FormError(f"A part of the form is encoded as {encoding[:40]!r}; it must be sent without an encoding")
    if (segment.charset or "utf-8").lower() not in _CHARSETS:
        raise FormError(f"A part of the form has the charset {segment.charset!r:.40}; it must be UTF-8")
    name, bare, file = disposition.groups()
    return FormField(bare if name is None else name, span, file is not None, segment.filename)
