"""multipart/form-data of small forms (RFC 7578 over RFC 2046 section 5.1). Pure.

The whole body is in memory and bounded by the caller, so this is a split, not
a stream. `parse_form` raises `FormError` and nothing else.
"""

from __future__ import annotations

import re

MAX_PARTS = 16
_MAX_HEADER_BYTES = 4096
# RFC 2045 section 5.1: ; name=token or ; name="quoted \" string"
_PARAMETER = re.compile(r';[ \t]*([A-Za-z0-9*_-]+)=("(?:[^"\\]|\\.)*"|[^;\s"]*)')
# RFC 2046 section 5.1.1, without the space that it allows inside.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=?]{1,70}")
_ENCODINGS = (b"", b"7bit", b"8bit", b"binary")


class FormError(ValueError):
    """The body is not the form that its Content-Type promises."""


def parse_parameters(header: str) -> dict[str, str]:
    """Parameters of a Content-Type or Content-Disposition value, names in lower case."""
    return {
        name.lower(): re.sub(r"\\(.)", r"\1", value[1:-1]) if value[:1] == '"' else value
        for name, value in _PARAMETER.findall(header)
    }


def parse_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The form's fields by name, in the body's order."""
    boundary = parse_parameters(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise FormError("the Content-Type has no usable boundary")
    chunks = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), MAX_PARTS + 2)
    if len(chunks) > MAX_PARTS + 2:
        raise FormError(f"the form has more than {MAX_PARTS} parts")
    fields: dict[str, bytes] = {}
    for chunk in chunks[1:]:
        if chunk.startswith(b"--"):
            return fields
        name, content = _parse_part(chunk)
        if name in fields:
            raise FormError(f'the form has two parts named "{name}"')
        fields[name] = content
    raise FormError("the form is cut off: its closing boundary is missing")


def _parse_part(chunk: bytes) -> tuple[str, bytes]:
    """`chunk` is what follows a boundary: padding, CRLF, headers, empty line, content."""
    head, separator, content = chunk.partition(b"\r\n\r\n")
    padding, newline, head = head.partition(b"\r\n")
    if padding.strip(b" \t") or not (newline and separator):
        raise FormError("a part of the form has no headers")
    if len(head) > _MAX_HEADER_BYTES:
        raise FormError(f"a part's headers are longer than {_MAX_HEADER_BYTES} bytes")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))
    }
    if headers.get(b"content-transfer-encoding", b"").lower() not in _ENCODINGS:
        raise FormError("a part has a Content-Transfer-Encoding (RFC 7578 section 4.7)")
    disposition = headers.get(b"content-disposition", b"").decode("utf-8", "replace")
    parameters = parse_parameters(disposition)
    if not disposition.lower().startswith("form-data") or "name" not in parameters:
        raise FormError('a part has no Content-Disposition: form-data; name="..."')
    return parameters["name"], content
