from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from aioice import stun as aioice_stun
from hypothesis import given
from hypothesis import strategies as st

from dataplane.proto import stun
from dataplane.proto.address import Address
from dataplane.proto.errors import BadPacket
from dataplane.proto.stun import (
    encode_error,
    encode_success,
    parse_binding_request,
    verify_integrity,
)

RFC5769 = json.loads((Path(__file__).parent.parent / "vectors" / "rfc5769.json").read_text())
REQUEST = bytes.fromhex(RFC5769["2.1 request"]["message"])
PASSWORD = RFC5769["2.1 request"]["password"]

MALFORMED = "drop_session_stun_malformed"
BAD_INTEGRITY = "drop_session_stun_bad_integrity"


def build(*attributes: tuple[int, bytes], password: str | None = PASSWORD) -> bytes:
    """A Binding request of the attributes as given, then MESSAGE-INTEGRITY and FINGERPRINT."""
    body = b"".join(attribute(*each) for each in attributes)
    message = struct.pack("!HHI12s", 1, len(body), 0x2112A442, b"transaction!") + body
    if password is not None:
        message += attribute(8, aioice_stun.message_integrity(message, password.encode()))
        message += attribute(
            0x8028, struct.pack("!I", aioice_stun.message_fingerprint(message))
        )  # fmt: skip
    return aioice_stun.set_body_length(message, len(message) - 20)


def attribute(kind: int, value: bytes, pad: bytes = b"\0") -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + pad * (-len(value) % 4)


USERNAME = (6, b"ours:theirs")


def reason_of(datagram: bytes, password: str = PASSWORD) -> str:
    with pytest.raises(BadPacket) as caught:
        verify_integrity(datagram, parse_binding_request(datagram), password)
    return caught.value.reason


def test_rfc5769_request() -> None:
    request = parse_binding_request(REQUEST)
    assert (request.local_ufrag, request.remote_ufrag) == ("evtj", "h6vY")
    assert request.priority == 0x6E0001FF
    assert request.ice_controlled == 0x932FF9B151263B36
    assert request.ice_controlling is None
    assert not request.use_candidate
    assert not request.unknown_required
    assert request.transaction_id.hex() == "b7e7a701bc34d686fa87dfae"
    verify_integrity(REQUEST, request, PASSWORD)
    assert reason_of(REQUEST, "VOkJxbRl1RmTxUk/WvJxBu") == BAD_INTEGRITY


@pytest.mark.parametrize("name", ["2.2 IPv4 response", "2.3 IPv6 response"])
def test_rfc5769_mapped_address(name: str) -> None:
    """Our answer to the RFC's request carries the RFC's XOR-MAPPED-ADDRESS, byte for byte."""
    vector = RFC5769[name]
    answer = encode_success(
        parse_binding_request(REQUEST),
        Address.from_text(vector["host"], vector["port"]),
        PASSWORD,
    )
    theirs = bytes.fromhex(vector["message"])
    start = theirs.index(b"\x00\x20\x00")
    mapped = theirs[start : start + 4 + theirs[start + 3]]
    assert answer[20 : 20 + len(mapped)] == mapped
    parsed = aioice_stun.parse_message(answer)
    assert parsed.check_message_integrity(PASSWORD.encode())
    assert parsed.attributes["XOR-MAPPED-ADDRESS"] == (vector["host"], vector["port"])
    assert list(parsed.attributes)[-2:] == ["MESSAGE-INTEGRITY", "FINGERPRINT"]


def test_rfc5769_responses_and_long_term_requests_are_not_checks() -> None:
    for name in ("2.2 IPv4 response", "2.3 IPv6 response", "2.4 long-term request"):
        assert reason_of(bytes.fromhex(RFC5769[name]["message"])) == MALFORMED


def test_constants_are_those_of_the_registry() -> None:
    """IANA, "STUN Attributes" and "STUN Error Codes", by aioice's table where it has the name."""
    assert stun.UNKNOWN_ATTRIBUTES == 0x000A
    for name, (kind, *_) in aioice_stun.ATTRIBUTES_BY_NAME.items():
        ours = getattr(stun, name.replace("-", "_"), kind)
        assert ours == kind, name


def test_mapped_address_of_a_mapped_client_is_ipv4() -> None:
    answer = encode_success(
        parse_binding_request(REQUEST), Address.from_text("::ffff:127.0.0.1", 9), PASSWORD
    )
    attributes = aioice_stun.parse_message(answer).attributes
    assert attributes["XOR-MAPPED-ADDRESS"] == ("127.0.0.1", 9)


def test_error_response() -> None:
    request = parse_binding_request(REQUEST)
    parsed = aioice_stun.parse_message(encode_error(request, 403, "Forbidden", PASSWORD))
    assert parsed.attributes["ERROR-CODE"] == (403, "Forbidden")
    assert parsed.transaction_id == request.transaction_id
    assert parsed.check_message_integrity(PASSWORD.encode())


def test_unknown_required_attributes_are_named_in_a_420() -> None:
    datagram = build(USERNAME, (0x7001, b"x"), (0x0013, b""), (0xC001, b"optional"))
    request = parse_binding_request(datagram)
    verify_integrity(datagram, request, PASSWORD)
    assert request.unknown_required == (0x7001, 0x0013)
    answer = encode_error(request, 420, "Unknown Attribute", PASSWORD)
    assert attribute(0x000A, b"\x70\x01\x00\x13") in answer
    assert aioice_stun.parse_message(answer).check_message_integrity(PASSWORD.encode())


def test_every_truncation_is_malformed() -> None:
    for length in range(len(REQUEST)):
        assert reason_of(REQUEST[:length]) == MALFORMED
        # The same with a length field that fits, so that the walk is what has to notice.
        # Only the message that lacks just its FINGERPRINT is whole.
        if length >= 20 and length != len(REQUEST) - 8:
            fitting = REQUEST[:2] + struct.pack("!H", length - 20) + REQUEST[4:length]
            assert reason_of(fitting) in (MALFORMED, BAD_INTEGRITY)
    assert reason_of(REQUEST + bytes(4)) == MALFORMED


def test_every_flipped_bit_is_noticed() -> None:
    """But for those that turn FINGERPRINT itself into an attribute that nobody reads."""
    fingerprint_type = range((len(REQUEST) - 8) * 8, (len(REQUEST) - 6) * 8)
    for bit in set(range(len(REQUEST) * 8)).difference(fingerprint_type):
        flipped = bytearray(REQUEST)
        flipped[bit // 8] ^= 1 << bit % 8
        assert reason_of(bytes(flipped)) in (MALFORMED, BAD_INTEGRITY)


def test_every_flipped_bit_without_fingerprint() -> None:
    bare = REQUEST[:2] + struct.pack("!H", len(REQUEST) - 28) + REQUEST[4:-8]
    verify_integrity(bare, parse_binding_request(bare), PASSWORD)
    for bit in range(len(bare) * 8):
        flipped = bytearray(bare)
        flipped[bit // 8] ^= 1 << bit % 8
        assert reason_of(bytes(flipped)) in (MALFORMED, BAD_INTEGRITY)


def test_integrity_is_required() -> None:
    assert reason_of(build(USERNAME, password=None)) == BAD_INTEGRITY
    with_fingerprint = build(USERNAME, password=None)
    crc = aioice_stun.message_fingerprint(with_fingerprint)
    with_fingerprint += attribute(0x8028, struct.pack("!I", crc))
    with_fingerprint = aioice_stun.set_body_length(with_fingerprint, len(with_fingerprint) - 20)
    assert reason_of(with_fingerprint) == BAD_INTEGRITY


def test_nothing_after_integrity_counts() -> None:
    """Else a man in the middle could add USE-CANDIDATE and steer us."""
    signed = build(USERNAME)[:-8]
    added = signed + attribute(0x25, b"") + attribute(6, b"ours:another")
    added = aioice_stun.set_body_length(added, len(added) - 20)
    request = parse_binding_request(added)
    verify_integrity(added, request, PASSWORD)
    assert not request.use_candidate
    assert request.remote_ufrag == "theirs"


def test_attributes_after_fingerprint_are_malformed() -> None:
    longer = build(USERNAME) + attribute(0x8022, b"late")
    assert reason_of(aioice_stun.set_body_length(longer, len(longer) - 20)) == MALFORMED


def test_padding_may_be_anything() -> None:
    body = attribute(6, b"a:b", pad=b"\xff")
    message = struct.pack("!HHI12s", 1, len(body), 0x2112A442, bytes(12)) + body
    message += attribute(8, aioice_stun.message_integrity(message, PASSWORD.encode()))
    message = aioice_stun.set_body_length(message, len(message) - 20)
    verify_integrity(message, parse_binding_request(message), PASSWORD)


@pytest.mark.parametrize(
    "attributes",
    [
        (),  # no USERNAME
        ((6, b""),),
        ((6, b"ours"),),
        ((6, b":theirs"),),
        ((6, b"ours:"),),
        ((6, b"\xff:x"),),  # not UTF-8
        ((6, b"a:" + b"b" * 507),),  # RFC 8489 14.3
        ((6, b"a:b"), (6, b"a:c")),
        (USERNAME, (0x24, b"\0\0\0")),
        (USERNAME, (0x24, b"\0\0\0\0\0")),
        (USERNAME, (0x802A, b"\0" * 7)),
        (USERNAME, (0x20, b"")),  # XOR-MAPPED-ADDRESS has no business here, and is broken
        (USERNAME, (0x20, b"\0\x03\0\0\0\0\0\0")),
        (USERNAME, (9, b"\0\0\x04")),
        (USERNAME, (0x0C, b"")),
    ],
)
def test_attribute_that_makes_it_malformed(attributes: tuple[tuple[int, bytes], ...]) -> None:
    assert reason_of(build(*attributes)) == MALFORMED


@pytest.mark.parametrize("message_type", [0x0011, 0x0101, 0x0111, 0x0003, 0x0002, 0x3FFF, 0x0000])
def test_other_methods_and_classes_are_malformed(message_type: int) -> None:
    assert reason_of(struct.pack("!H", message_type) + REQUEST[2:]) == MALFORMED


def test_integrity_of_a_wrong_size_is_malformed() -> None:
    for size in (0, 19, 21, 32):
        assert reason_of(build(USERNAME, (8, bytes(size)), password=None)) == MALFORMED


def test_an_enormous_message_is_malformed() -> None:
    assert reason_of(build(USERNAME, (0x8022, b"x" * 1500))) == MALFORMED


@given(st.data())
def test_mutations_raise_nothing_but_bad_packet(data: st.DataObject) -> None:
    mutated = bytearray(REQUEST)
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        mutated += data.draw(st.binary(max_size=64))
    if data.draw(st.booleans()):
        mutated[2:4] = struct.pack("!H", len(mutated) - 20)
    with contextlib.suppress(BadPacket):
        request = parse_binding_request(bytes(mutated))
        verify_integrity(bytes(mutated), request, PASSWORD)
        # What still verifies says what it said before.
        assert request == parse_binding_request(REQUEST)


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=8))
def test_any_attributes_raise_nothing_but_bad_packet(attributes: list[tuple[int, bytes]]) -> None:
    datagram = build(USERNAME, *attributes)
    with contextlib.suppress(BadPacket):
        request = parse_binding_request(datagram)
        verify_integrity(datagram, request, PASSWORD)
        encode_error(request, 420, "Unknown Attribute", PASSWORD)


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_bad_packet(datagram: bytes) -> None:
    assert reason_of(datagram) == MALFORMED
