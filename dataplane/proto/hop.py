"""Hop datagrams: relay to transceiver, many records in one (DESIGN section 4).

The Python oracle of the kernel's hop.c. All integers are big-endian.

    header, 32 bytes                      record, 48 bytes and the payload
    magic        u16  0x4548              length       u16  of the payload, 1..2048
    version      u8   1                   flags        u8   ek_hop_flags
    flags        u8   0                   transport    u8   ek_transport
    count        u16  records, >= 1       client_port  u16
    source       u16  relay index         node_id      u16
    incarnation  u32  of the relay        client_ip    16
    reserved     u32  0                   local_ip     16   zeros: unknown
    record_index u64                      slot         u32  24 bits
    t_recv_ns    u64                      generation   u32  24 bits

record_index counts the records that this relay has sent to this transceiver, so a gap is
records lost. t_recv_ns is CLOCK_MONOTONIC at the oldest record's batch.

A datagram counts whole or not at all: a record is only as believable as the lengths before it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dataplane.proto.address import TRANSPORT_TCP, TRANSPORT_UDP, Address
from dataplane.proto.errors import BadPacket

HOP_MAGIC = 0x4548
HOP_VERSION = 1
HOP_HEADER_BYTES = 32
HOP_RECORD_BYTES = 48
MAX_PAYLOAD_BYTES = 2048  # EK_MAX_DATAGRAM_BYTES

# enum ek_hop_flags
HOP_STUN = 1
HOP_DTLS = 2
HOP_RTP = 4
HOP_NEW_FLOW = 8

# One class each; only a STUN request can have made a flow.
_VALID_FLAGS = frozenset((HOP_STUN, HOP_DTLS, HOP_RTP, HOP_STUN | HOP_NEW_FLOW))
_VALID_TRANSPORTS = frozenset((TRANSPORT_UDP, TRANSPORT_TCP))
_MAX_24_BITS = 0xFFFFFF

_HEADER = struct.Struct("!HBBHHIIQQ")
_RECORD = struct.Struct("!HBBHH16s16sII")


@dataclass(frozen=True, slots=True)
class HopHeader:
    """count is checked, not believed, by encode_hop."""

    count: int
    source: int
    incarnation: int
    record_index: int
    t_recv_ns: int


class HopRecord(NamedTuple):
    """One datagram of one client. A tuple, because a transceiver makes one for each packet."""

    flags: int
    client: Address
    local_ip: bytes
    node_id: int
    slot: int
    generation: int
    payload: bytes


def encode_hop(header: HopHeader, records: Sequence[HopRecord]) -> bytes:
    """A hop datagram. Raises ValueError if header.count is not the number of records or a
    record would not be parsed again."""
    if header.count != len(records) or not records:
        raise ValueError("count does not match the records")
    parts = [
        _HEADER.pack(
            HOP_MAGIC,
            HOP_VERSION,
            0,
            header.count,
            header.source,
            header.incarnation,
            0,
            header.record_index,
            header.t_recv_ns,
        )
    ]
    for record in records:
        client = record.client
        if not _is_valid(record.flags, client.transport, record.slot, record.generation):
            raise ValueError("a field of the record is out of range")
        if not 1 <= len(record.payload) <= MAX_PAYLOAD_BYTES:
            raise ValueError("payload is not of 1..2048 bytes")
        if len(client.ip) != 16 or len(record.local_ip) != 16:
            raise ValueError("addresses have 16 bytes")
        parts.append(
            _RECORD.pack(
                len(record.payload),
                record.flags,
                client.transport,
                client.port,
                record.node_id,
                client.ip,
                record.local_ip,
                record.slot,
                record.generation,
            )
        )
        parts.append(record.payload)
    return b"".join(parts)


def parse_hop(datagram: bytes) -> tuple[HopHeader, list[HopRecord]]:
    """Take a hop datagram apart. Raises BadPacket("drop_hop_malformed") for the whole of it."""
    header = _parse_header(datagram)
    records = []
    offset = HOP_HEADER_BYTES
    size = len(datagram)
    for _ in range(header.count):
        if size - offset < HOP_RECORD_BYTES:
            raise BadPacket("drop_hop_malformed", "record cut short")
        length, flags, transport, port, node_id, client_ip, local_ip, slot, generation = (
            _RECORD.unpack_from(datagram, offset)
        )
        offset += HOP_RECORD_BYTES
        if not 1 <= length <= MAX_PAYLOAD_BYTES or size - offset < length:
            raise BadPacket("drop_hop_malformed", "payload length")
        if not _is_valid(flags, transport, slot, generation):
            raise BadPacket("drop_hop_malformed", "record field")
        payload = datagram[offset : offset + length]
        offset += length
        client = Address(client_ip, port, transport)
        records.append(HopRecord(flags, client, local_ip, node_id, slot, generation, payload))
    if offset != size:
        raise BadPacket("drop_hop_malformed", "bytes after the last record")
    return header, records


def _parse_header(datagram: bytes) -> HopHeader:
    if len(datagram) < HOP_HEADER_BYTES:
        raise BadPacket("drop_hop_malformed", "header cut short")
    magic, version, flags, count, source, incarnation, reserved, record_index, t_recv_ns = (
        _HEADER.unpack_from(datagram)
    )
    if magic != HOP_MAGIC or version != HOP_VERSION or flags or reserved or not count:
        raise BadPacket("drop_hop_malformed", "header")
    return HopHeader(count, source, incarnation, record_index, t_recv_ns)


def _is_valid(flags: int, transport: int, slot: int, generation: int) -> bool:
    return (
        flags in _VALID_FLAGS
        and transport in _VALID_TRANSPORTS
        and 0 <= slot <= _MAX_24_BITS
        and 0 <= generation <= _MAX_24_BITS
    )
