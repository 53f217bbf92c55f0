from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.proto.address import Address
from dataplane.proto.errors import BadPacket
from dataplane.proto.hop import (
    HOP_DTLS,
    HOP_HEADER_BYTES,
    HOP_NEW_FLOW,
    HOP_RECORD_BYTES,
    HOP_RTP,
    HOP_STUN,
    HopHeader,
    HopRecord,
    encode_hop,
    parse_hop,
)

HEADER = HopHeader(count=2, source=3, incarnation=4, record_index=5, t_recv_ns=6)
RECORDS = [
    HopRecord(
        flags=HOP_STUN | HOP_NEW_FLOW,
        client=Address.from_text("192.0.2.1", 40000),
        local_ip=Address.from_text("192.0.2.2", 0).ip,
        node_id=7,
        slot=8,
        generation=9,
        payload=b"first",
    ),
    HopRecord(
        flags=HOP_RTP,
        client=Address.from_text("2001:db8::1", 40001, 2),
        local_ip=bytes(16),
        node_id=7,
        slot=0xFFFFFF,
        generation=0xFFFFFF,
        payload=b"\x80" * 100,
    ),
]
DATAGRAM = encode_hop(HEADER, RECORDS)

addresses = st.builds(
    Address, ip=st.binary(min_size=16, max_size=16), port=st.integers(0, 65535),
    transport=st.sampled_from([1, 2]),
)  # fmt: skip
records = st.builds(
    HopRecord,
    flags=st.sampled_from([HOP_STUN, HOP_DTLS, HOP_RTP, HOP_STUN | HOP_NEW_FLOW]),
    client=addresses,
    local_ip=st.binary(min_size=16, max_size=16),
    node_id=st.integers(0, 0xFFFF),
    slot=st.integers(0, 0xFFFFFF),
    generation=st.integers(0, 0xFFFFFF),
    payload=st.binary(min_size=1, max_size=64),
)


def malformed(datagram: bytes) -> None:
    with pytest.raises(BadPacket) as caught:
        parse_hop(datagram)
    assert caught.value.reason == "drop_hop_malformed"


def patched(offset: int, value: bytes) -> bytes:
    return DATAGRAM[:offset] + value + DATAGRAM[offset + len(value) :]


def test_layout() -> None:
    assert len(DATAGRAM) == 32 + 48 + 5 + 48 + 100
    assert DATAGRAM[:32].hex() == (
        "4548" "01" "00" "0002" "0003" "00000004" "00000000"
        "0000000000000005" "0000000000000006"
    )  # fmt: skip
    assert DATAGRAM[32:80].hex() == (
        "0005" "09" "01" "9c40" "0007" "00000000000000000000ffffc0000201"
        "00000000000000000000ffffc0000202" "00000008" "00000009"
    )  # fmt: skip


@given(st.lists(records, min_size=1, max_size=8), st.integers(0, 2**64 - 1))
def test_round_trip(many: list[HopRecord], index: int) -> None:
    header = HopHeader(len(many), 65535, 2**32 - 1, index, 2**64 - 1)
    assert parse_hop(encode_hop(header, many)) == (header, many)


def test_every_truncation_is_malformed_as_a_whole() -> None:
    for length in range(len(DATAGRAM)):
        malformed(DATAGRAM[:length])
    malformed(DATAGRAM + b"\0")


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"\x45\x49"),  # magic
        (2, b"\x02"),  # version
        (3, b"\x01"),  # flags
        (4, b"\x00\x00"),  # no record
        (4, b"\x00\x01"),  # fewer than there are
        (4, b"\x00\x03"),  # more than there are
        (12, b"\x00\x00\x00\x01"),  # reserved
        (HOP_HEADER_BYTES, b"\x00\x00"),  # empty payload
        (HOP_HEADER_BYTES, b"\xff\xff"),
        (HOP_HEADER_BYTES, b"\x00\x06"),
        (HOP_HEADER_BYTES + 2, b"\x00"),  # no class
        (HOP_HEADER_BYTES + 2, b"\x03"),  # two classes
        (HOP_HEADER_BYTES + 2, b"\x0c"),  # only STUN makes a flow
        (HOP_HEADER_BYTES + 2, b"\x11"),  # unknown bit
        (HOP_HEADER_BYTES + 3, b"\x00"),  # transport
        (HOP_HEADER_BYTES + 3, b"\x03"),
        (HOP_HEADER_BYTES + 40, b"\x01\x00\x00\x00"),  # slot of 25 bits
        (HOP_HEADER_BYTES + 44, b"\x01\x00\x00\x00"),  # generation of 25 bits
    ],
)
def test_field_that_makes_it_malformed(offset: int, value: bytes) -> None:
    malformed(patched(offset, value))


def test_a_payload_above_the_limit_is_malformed() -> None:
    big = HopRecord(HOP_RTP, RECORDS[1].client, bytes(16), 0, 0, 1, bytes(2048))
    datagram = encode_hop(replace(HEADER, count=1), [big])
    assert parse_hop(datagram)[1] == [big]
    malformed(datagram[:32] + (2049).to_bytes(2, "big") + datagram[34:] + b"\0")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(tail: bytes, with_header: bool) -> None:
    """Either it is refused with the one error, or it is what encoding it again gives."""
    datagram = (DATAGRAM[:32] if with_header else b"") + tail
    with contextlib.suppress(BadPacket):
        assert encode_hop(*parse_hop(datagram)) == datagram


@pytest.mark.parametrize(
    "bad",
    [
        RECORDS[0]._replace(payload=b""),
        RECORDS[0]._replace(payload=bytes(2049)),
        RECORDS[0]._replace(local_ip=b""),
        RECORDS[0]._replace(flags=0),
        RECORDS[0]._replace(slot=1 << 24),
        RECORDS[0]._replace(client=Address(bytes(16), 1, 0)),
    ],
)
def test_what_is_not_encoded(bad: HopRecord) -> None:
    assert HOP_RECORD_BYTES == 48
    with pytest.raises(ValueError, match=r"."):
        encode_hop(replace(HEADER, count=1), [bad])
    with pytest.raises(ValueError, match="count"):
        encode_hop(HEADER, RECORDS[:1])
