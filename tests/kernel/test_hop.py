"""hop.c against its oracle, dataplane/proto/hop.py, both ways."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.kernel import _kernel, binding
from dataplane.proto.address import Address
from dataplane.proto.errors import BadPacket
from dataplane.proto.hop import HopHeader, HopRecord, encode_hop, parse_hop

ffi, lib = _kernel.ffi, _kernel.lib

records_strategy = st.builds(
    HopRecord,
    flags=st.sampled_from([1, 2, 4, 9]),
    client=st.builds(
        Address,
        st.binary(min_size=16, max_size=16),
        st.integers(0, 0xFFFF),
        st.sampled_from([1, 2]),
    ),
    local_ip=st.binary(min_size=16, max_size=16),
    node_id=st.integers(0, 0xFFFF),
    slot=st.integers(0, 0xFFFFFF),
    generation=st.integers(0, 0xFFFFFF),
    payload=st.binary(min_size=1, max_size=80),
)
batches = st.lists(records_strategy, min_size=1, max_size=8)
headers = st.tuples(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)


def kernel_encode(header: HopHeader, records: list[HopRecord]) -> bytes:
    buffer = ffi.new("uint8_t[]", 32 + sum(48 + len(record.payload) for record in records))
    fields = (header.count, header.source, header.incarnation, header.record_index)
    struct = ffi.new("struct ek_hop_header *", [*fields, header.t_recv_ns])
    lib.ek_hop_encode_header(buffer, struct)
    at = 32
    for record in records:
        item = ffi.new("struct ek_hop_record *")
        payload = ffi.from_buffer("uint8_t[]", record.payload)
        item.payload = payload
        item.payload_bytes = len(record.payload)
        item.slot, item.generation = record.slot, record.generation
        item.client_port, item.node_id = record.client.port, record.node_id
        item.client_ip, item.local_ip = list(record.client.ip), list(record.local_ip)
        item.flags, item.transport = record.flags, record.client.transport
        at += lib.ek_hop_encode_record(buffer + at, item)
    return bytes(ffi.buffer(buffer, at))


def kernel_parse(datagram: bytes) -> tuple[HopHeader, list[HopRecord]] | None:
    parsed = binding.parse_hop(datagram)
    if parsed is None:
        return None
    header, records = parsed
    return (
        HopHeader(
            header.count, header.source, header.incarnation, header.record_index, header.t_recv_ns
        ),
        [
            HopRecord(
                flags=r.flags,
                client=Address(bytes(r.client_ip), r.client_port, r.transport),
                local_ip=bytes(r.local_ip),
                node_id=r.node_id,
                slot=r.slot,
                generation=r.generation,
                payload=bytes(ffi.buffer(r.payload, r.payload_bytes)),
            )
            for r in records
        ],
    )


def oracle_parse(datagram: bytes) -> tuple[HopHeader, list[HopRecord]] | None:
    try:
        return parse_hop(datagram)
    except BadPacket:
        return None


@given(headers, batches)
def test_encode_as_the_oracle(fields: tuple[int, int, int, int], records: list[HopRecord]) -> None:
    source, incarnation, record_index, t_recv_ns = fields
    header = HopHeader(len(records), source, incarnation, record_index, t_recv_ns)
    datagram = encode_hop(header, records)
    assert kernel_encode(header, records) == datagram
    assert kernel_parse(datagram) == (header, records)


def sample() -> bytes:
    client = Address.from_text("192.0.2.1", 40000)
    first = HopRecord(9, client, bytes(16), 1, 2, 3, b"first")
    second = HopRecord(4, client, bytes(range(16)), 1, 2, 3, b"\x80" * 50)
    return encode_hop(HopHeader(2, 1, 2, 3, 4), [first, second])


def test_every_short_length_is_malformed() -> None:
    datagram = sample()
    for length in range(len(datagram)):
        assert kernel_parse(datagram[:length]) is None
    assert kernel_parse(datagram + b"\x00") is None


def test_every_bent_byte_as_the_oracle() -> None:
    datagram = sample()
    for index in range(32 + 48 + 5 + 48):
        for value in (0, 1, 0x7F, 0x80, 0xFF, datagram[index] ^ 1):
            bent = bytearray(datagram)
            bent[index] = value
            assert kernel_parse(bytes(bent)) == oracle_parse(bytes(bent)), index


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: sample()[:40] + tail))
def test_anything_as_the_oracle(datagram: bytes) -> None:
    assert kernel_parse(datagram) == oracle_parse(datagram)
