"""stun_peek.c: a numbered truth table, RFC 5769's requests, and the oracles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.kernel import _kernel, binding
from dataplane.proto.errors import BadPacket
from dataplane.proto.stun import parse_binding_request
from dataplane.proto.ufrag import parse_ufrag
from tests.kernel.stun_messages import (
    KEYS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    PRIORITY,
    SOFTWARE,
    USERNAME,
    attribute,
    check,
    mac_keys,
    message,
    ufrag_text,
)

OK = _kernel.lib.EK_PEEK_OK
MALFORMED = _kernel.lib.EK_PEEK_MALFORMED
NOT_REQUEST = _kernel.lib.EK_PEEK_NOT_REQUEST
NO_USERNAME = _kernel.lib.EK_PEEK_NO_USERNAME
FOREIGN = _kernel.lib.EK_PEEK_FOREIGN_UFRAG

RING = binding.KeyRing(mac_keys())
OURS = ufrag_text(slot=0x010203, generation=0x040506, node_id=0x0708, worker=9)
NAMED = attribute(USERNAME, f"{OURS}:abcd".encode())
MAC_SHA1 = attribute(MESSAGE_INTEGRITY, bytes(20))
GOOD = message(NAMED, MAC_SHA1)


def flipped(text: str, index: int) -> str:
    return text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]


def username(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return message(attribute(USERNAME, encoded), MAC_SHA1)


TRUTH = [
    (1, b"", MALFORMED),
    (2, GOOD[:19], MALFORMED),
    (3, GOOD, OK),
    (4, check(OURS), OK),
    (5, GOOD[:-4], MALFORMED),  # shorter than its length says
    (6, GOOD + bytes(4), MALFORMED),  # longer
    (7, bytes([0x40]) + GOOD[1:], MALFORMED),  # the two bits of section 5
    (8, message(NAMED, cookie=0x2112A443), MALFORMED),
    (9, GOOD[:2] + b"\x00\x41" + GOOD[4:], MALFORMED),  # length not in fours
    (10, message(NAMED, kind=0x0101), NOT_REQUEST),  # success response
    (11, message(NAMED, kind=0x0111), NOT_REQUEST),  # error response
    (12, message(NAMED, kind=0x0011), NOT_REQUEST),  # indication
    (13, message(NAMED, kind=0x0003), NOT_REQUEST),  # Allocate
    (14, message(), NO_USERNAME),
    (15, message(attribute(PRIORITY, bytes(4)), MAC_SHA1), NO_USERNAME),
    (16, message(MAC_SHA1, NAMED), NO_USERNAME),  # behind the integrity
    (17, message(attribute(MESSAGE_INTEGRITY_SHA256, bytes(32)), NAMED), NO_USERNAME),
    (18, message(attribute(SOFTWARE, b"x" * 13), NAMED), OK),  # padding walked
    (19, message(b"\x80\x22\xff\xff"), MALFORMED),  # attribute longer than the message
    (20, message(b"\x00\x06\x00\x1d" + f"{OURS}:abc".encode()), MALFORMED),  # one byte longer
    (21, username(OURS), FOREIGN),  # no colon
    (22, username(f"{OURS}:"), OK),
    (23, username(f"{OURS[:23]}:abcd"), FOREIGN),
    (24, username(f"{OURS}A:abcd"), FOREIGN),
    (25, username("evtj:h6vY"), FOREIGN),
    (26, username(""), FOREIGN),
    (27, username(f"{flipped(OURS, 0)}:a"), FOREIGN),  # another version
    (28, username(f"{flipped(OURS, 8)}:a"), FOREIGN),  # another slot, same MAC
    (29, username(f"{flipped(OURS, 23)}:a"), FOREIGN),  # the MAC's last byte
    (30, username(f"{flipped(OURS, 14)}:a"), FOREIGN),  # the MAC's first byte
    (31, username(f"{ufrag_text(key_id=7)}:a"), OK),  # the other key
    (32, username(f"{OURS[:22]}==:a"), FOREIGN),
    (33, username(f"{OURS[:23]}-:a"), FOREIGN),  # base64url is no ice-char
    (34, username(OURS[:20].encode() + b"\xff\xfe\x00\x80:a"), FOREIGN),
    (35, message(NAMED, attribute(USERNAME, b"other:name")), OK),  # the first one counts
    (36, message(attribute(USERNAME, b"other:name"), NAMED), FOREIGN),
    (37, message(NAMED, b"\x80\x22\xff\xff"), OK),  # nothing behind USERNAME is looked at
]


@pytest.mark.parametrize(("number", "datagram", "expected"), TRUTH)
def test_truth_table(number: int, datagram: bytes, expected: int) -> None:
    assert binding.stun_peek(datagram, RING)[0] == expected


def test_fields_and_place() -> None:
    verdict, peeked = binding.stun_peek(GOOD, RING)
    assert verdict == OK
    assert peeked == binding.PeekedUfrag(0, 0x0708, 9, 0x010203, 0x040506, GOOD.index(b":") - 24)


def test_a_key_that_is_not_in_the_ring_is_foreign() -> None:
    only_active = binding.KeyRing({0: KEYS.mac_key(0)})
    datagram = username(f"{ufrag_text(key_id=7)}:a")
    assert binding.stun_peek(datagram, RING)[0] == OK
    assert binding.stun_peek(datagram, only_active)[0] == FOREIGN
    assert binding.stun_peek(datagram, binding.KeyRing({}))[0] == FOREIGN


def test_every_bit_of_the_ufrag_is_signed() -> None:
    start = GOOD.index(OURS.encode())
    for byte in range(start, start + 24):
        for bit in range(8):
            bent = bytearray(GOOD)
            bent[byte] ^= 1 << bit
            assert binding.stun_peek(bytes(bent), RING)[0] == FOREIGN


def test_every_short_length_is_malformed() -> None:
    for length in range(len(GOOD)):
        assert binding.stun_peek(GOOD[:length], RING)[0] == MALFORMED


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("2.1 request", FOREIGN),
        ("2.2 IPv4 response", NOT_REQUEST),
        ("2.3 IPv6 response", NOT_REQUEST),
        ("2.4 long-term request", FOREIGN),
    ],
)
def test_rfc5769(section: str, expected: int) -> None:
    """Its USERNAMEs are nobody's of ours, so a request walks up to there; an
    attribute's padding there is not zero."""
    path = Path(__file__).parent.parent / "vectors" / "rfc5769.json"
    vector = json.loads(path.read_text())[section]
    assert binding.stun_peek(bytes.fromhex(vector["message"]), RING)[0] == expected


def test_ufrag_vectors() -> None:
    path = Path(__file__).parent.parent / "vectors" / "ufrag.json"
    for vector in json.loads(path.read_text()):
        fields = vector["fields"]
        ring = binding.KeyRing({fields["key_id"]: bytes.fromhex(vector["mac_key"])})
        _, peeked = binding.stun_peek(username(vector["ufrag"] + ":abcd"), ring)
        assert peeked is not None
        assert {name: getattr(peeked, name) for name in fields} == fields


# --- against the oracles


ice_chars = st.text("ABCxyz019+/=-", min_size=24, max_size=24)
ufrags = st.builds(
    ufrag_text,
    slot=st.integers(0, 0xFFFFFF),
    generation=st.integers(0, 0xFFFFFF),
    node_id=st.integers(0, 0xFFFF),
    worker=st.integers(0, 255),
    key_id=st.sampled_from([0, 7]),
)


@given(ufrags | ice_chars | ufrags.map(lambda text: flipped(text, 5)))
@example("=" * 24)
def test_ufrag_as_the_oracle(text: str) -> None:
    verdict, peeked = binding.stun_peek(username(text + ":abcd"), RING)
    try:
        expected = parse_ufrag(text.encode(), KEYS)
    except BadPacket:
        assert verdict == FOREIGN
        return
    assert peeked is not None
    assert verdict == OK
    for name in ("key_id", "node_id", "worker", "slot", "generation"):
        assert getattr(peeked, name) == getattr(expected, name)


attributes = st.one_of(
    st.builds(attribute, st.integers(0, 0xFFFF), st.binary(max_size=40), st.just(b"\x00")),
    st.builds(lambda text: attribute(USERNAME, f"{text}:abcd".encode()), ufrags),
    st.just(MAC_SHA1),
    st.binary(max_size=12),
)


@given(st.lists(attributes, max_size=6), st.sampled_from([0x0001, 0x0001, 0x0101, 0x0003]))
def test_messages_as_the_oracle(parts: list[bytes], kind: int) -> None:
    """What the slow path's parser takes, peek takes, and they agree on the name.
    (Peek takes more: it looks at nothing behind USERNAME.)"""
    datagram = message(*parts, kind=kind)
    verdict, peeked = binding.stun_peek(datagram, RING)
    try:
        request = parse_binding_request(datagram)
    except BadPacket:
        return
    if verdict == OK:
        assert peeked is not None
        text = datagram[peeked.offset : peeked.offset + 24].decode()
        assert request.local_ufrag == text
    else:
        assert verdict in (FOREIGN, NO_USERNAME)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: GOOD[:20] + tail))
def test_anything_gets_a_verdict(datagram: bytes) -> None:
    verdict, peeked = binding.stun_peek(datagram, RING)
    assert verdict in (OK, MALFORMED, NOT_REQUEST, NO_USERNAME, FOREIGN)
    assert (peeked is None) == (verdict != OK)
