"""multipart/form-data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.multipart import MAX_PARTS, FormError, parse_form, parse_parameters

TYPE = "multipart/form-data; boundary=XyZ"
BODY = (
    b"--XyZ\r\n"
    b'Content-Disposition: form-data; name="sdp"\r\n'
    b"Content-Type: application/sdp\r\n"
    b"\r\n"
    b"v=0\r\no=-\r\n"
    b"\r\n--XyZ\r\n"
    b'content-disposition: form-data; filename="a; name=\\"x\\""; name=session\r\n'
    b"\r\n"
    b"{}"
    b"\r\n--XyZ--\r\n"
)


def part(name: str, content: bytes = b"1") -> bytes:
    return b'--XyZ\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (
        name.encode(),
        content,
    )


def test_fields() -> None:
    assert parse_form(TYPE, BODY) == {"sdp": b"v=0\r\no=-\r\n", "session": b"{}"}


def test_preamble_epilogue_padding_and_quoted_boundary() -> None:
    body = b"hello\r\n" + BODY.replace(b"--XyZ\r\n", b"--XyZ \t\r\n") + b"the end"
    assert (
        parse_form('multipart/form-data; charset=utf-8; boundary="XyZ"', body)["session"] == b"{}"
    )


def test_no_fields() -> None:
    assert parse_form(TYPE, b"--XyZ--") == {}


def test_parameters() -> None:
    assert parse_parameters('form-data; Name="a\\"b;c"; x=1') == {"name": 'a"b;c', "x": "1"}


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", BODY, "boundary"),
        ("multipart/form-data; boundary=" + "x" * 71, BODY, "boundary"),
        (TYPE, b"", "cut off"),
        (TYPE, BODY[:-6], "cut off"),
        (TYPE, b"--XyZ\r\n--XyZ--", "no headers"),
        (TYPE, b"--XyZabc\r\nA: b\r\n\r\n\r\n--XyZ--", "no headers"),
        (TYPE, b"--XyZ\r\nA: b\r\n\r\n\r\n--XyZ--", "Content-Disposition"),
        (TYPE, BODY.replace(b"form-data; name", b"inline; name"), "Content-Disposition"),
        (TYPE, BODY.replace(b"Content-Type: application/sdp", b"X: " + b"x" * 5000), "longer than"),
        (
            TYPE,
            BODY.replace(b"Content-Type: application/sdp", b"Content-Transfer-Encoding: base64"),
            "Content-Transfer-Encoding",
        ),
        (TYPE, part("a") + part("a") + b"--XyZ--", "two parts"),
        (TYPE, b"".join(part(str(i)) for i in range(MAX_PARTS + 1)) + b"--XyZ--", "more than"),
    ],
)
def test_refusals(content_type: str, body: bytes, words: str) -> None:
    with pytest.raises(FormError, match=words):
        parse_form(content_type, body)


def test_as_many_parts_as_allowed() -> None:
    body = b"".join(part(str(i)) for i in range(MAX_PARTS)) + b"--XyZ--"
    assert len(parse_form(TYPE, body)) == MAX_PARTS


@given(
    st.lists(st.sampled_from([*BODY.splitlines(keepends=True), b"\r\n", b"--XyZ", b"\xff"])),
    st.binary(max_size=20),
)
def test_fuzz(lines: list[bytes], tail: bytes) -> None:
    fields: dict[str, bytes] = {}
    try:
        fields = parse_form(TYPE, b"".join(lines) + tail)
    except FormError:
        fields = {}
    assert len(fields) <= MAX_PARTS
