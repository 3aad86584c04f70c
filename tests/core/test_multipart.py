"""The fields of a form, and invalid forms."""

from __future__ import annotations

import pytest

from appliance.core.multipart import FormError, is_form, read_form, text_value

TYPE = "multipart/form-data; boundary=xYz"
FORM = (
    b'--xYz\r\nContent-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
    b'RIFF\x00\xff--xY\r\n\r\nname="model"\r\n'
    b"--xYz\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper-1\r\n"
    b'--xYz\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\r\n'
    b"--xYz--\r\n"
)


def part(name: str, value: bytes = b"x", extra: str = "", header: str = "") -> bytes:
    """Return a part of a form with this name; `extra` is the rest of its first header, `header` more headers."""
    return f'--xYz\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n{header}\r\n'.encode() + value + b"\r\n"


END = b"--xYz--\r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", b"whisper-1"), ("prompt", b""), ("file", b'RIFF\x00\xff--xY\r\n\r\nname="model"'), ("none", None)],
)
def test_a_field_is_found_among_files(name: str, value: bytes | None) -> None:
    """Whatever bytes and names the files have."""
    field = read_form(FORM, TYPE).get(name)

    assert (None if field is None else FORM[field.span]) == value


def test_the_value_of_a_text_field_is_returned() -> None:
    """A model name that is a file, or not text, is an error."""
    fields = read_form(FORM, TYPE)
    binary = part("model", b"\xff") + END

    assert text_value(FORM, fields["model"]) == "whisper-1"
    assert text_value(FORM, None) is None
    with pytest.raises(FormError, match="is a file"):
        text_value(FORM, fields["file"])
    with pytest.raises(FormError, match="not text"):
        text_value(binary, read_form(binary, TYPE)["model"])


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FORM, "multipart/form-data"),
        (FORM, "multipart/form-data; boundary=other"),
        (FORM, TYPE + "; boundary=other"),
        (FORM, 'multipart/form-data; boundary=""'),
        (FORM, "multipart/form-data; boundary=x\xffz"),
        (FORM[:150], TYPE),
        (b"", TYPE),
        (b"--xYz", TYPE),
        (b"preamble\r\n" + FORM, TYPE),
        (FORM + part("model") + END, TYPE),
        (b"--xYz" * 9, TYPE),
        (b"--xYz\r\n--xYz\r\n\r\nno disposition\r\n--xYz--", 'multipart/form-data; boundary="xYz"'),
        (b'--xYz\r\nContent-Disposition: form-data; name="a"\r\n\r\n--xYz--\r\n' + END, TYPE),
        (part("model") + part("model") + END, TYPE),
        (part("a", extra='; name="model"') + END, TYPE),
        (part("a", extra="; name*=utf-8''model") + END, TYPE),
        (part("mo\\del") + END, TYPE),
        (part("a", header="Content-Disposition: form-data; name=model\r\n") + END, TYPE),
        (part("model", b"eA==", header="Content-Transfer-Encoding: base64\r\n") + END, TYPE),
        (part("model", header="Content-Type: text/plain; charset=utf-16\r\n") + END, TYPE),
        (part("a", header="X: y\r\n" * 9) + END, TYPE),
        (part("a", header=f"X: {'y' * 5000}\r\n") + END, TYPE),
    ],
)
def test_an_ambiguous_form_is_rejected(body: bytes, content_type: str) -> None:
    """Broken forms, repeated fields, fields with two names or an encoding."""
    with pytest.raises(FormError):
        read_form(body, content_type)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (part("mo\\del") + END, "has the Content-Disposition .*, and its name must have no backslash"),
        (part("a", header=" continued\r\n") + END, "one on several lines"),
        (FORM[:150], "it ends early"),
    ],
)
def test_form_errors_are_described_in_plain_words(body: bytes, message: str) -> None:
    """Not in those of the parser."""
    with pytest.raises(FormError, match=message) as raised:
        read_form(body, TYPE)

    assert "segment" not in str(raised.value).lower()


def test_lists_are_several_fields_of_one_name() -> None:
    """As OpenAI's clients send them."""
    body = part("timestamp_granularities[]", b"word") + part("timestamp_granularities[]", b"segment") + END

    assert body[read_form(body, TYPE)["timestamp_granularities[]"].span] == b"segment"


def test_the_number_of_parts_is_limited() -> None:
    """The caller sets the limit."""
    body = b"".join(part(f"f{number}") for number in range(9)) + END

    assert len(read_form(body, TYPE, 9)) == 9
    with pytest.raises(FormError, match="more than 8 parts"):
        read_form(body, TYPE, 8)


def test_a_form_is_detected_by_its_content_type() -> None:
    """Upper and lower case are equal."""
    assert is_form("Multipart/Form-Data; boundary=a")
    assert not is_form("application/json")
    assert not is_form("multipart/form-data-of-others")
