"""
The name of the model among the files of a form.
"""

from __future__ import annotations

import pytest

from appliance.upstream.form import is_form, span_of

TYPE = "multipart/form-data; boundary=xYz"
FORM = (
    b"preamble\r\n--xYz\r\n"
    b'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
    b'RIFF\x00\xff--xY\r\n\r\nname="model"\r\n'
    b"--xYz\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper-1\r\n"
    b'--xYz\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\r\n'
    b"--xYz--\r\n"
)


@pytest.mark.parametrize(("name", "value"), [("model", b"whisper-1"), ("prompt", b""), ("file", b"RIFF\x00\xff--xY")])
def test_a_field_is_found_among_files(name: str, value: bytes) -> None:
    """
    Whatever bytes the files hold, and whatever they are called.
    """
    span = span_of(FORM, TYPE, name)

    assert span is not None
    assert FORM[span].startswith(value)
    assert (FORM[span] == value) == (name != "file")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FORM, "multipart/form-data"),
        (FORM, "multipart/form-data; boundary=other"),
        (FORM[:150], TYPE),
        (b"", TYPE),
        (b"--xYz", TYPE),
        (b"--xYz\r\n--xYz\r\n\r\nno disposition\r\n--xYz--", 'multipart/form-data; boundary="xYz"'),
    ],
)
def test_a_form_without_the_field_has_none(body: bytes, content_type: str) -> None:
    """
    Broken forms and forms of others too.
    """
    assert span_of(body, content_type, "model") is None


def test_a_form_is_told_by_its_type() -> None:
    """
    In any case of letters.
    """
    assert is_form("Multipart/Form-Data; boundary=a")
    assert not is_form("application/json")
