"""DTLS 1.2 records and handshake fragments, as far as they can be read without keys (RFC 6347 4).

Everything here sees a record before OpenSSL does: a memory BIO has no datagram boundaries, and
some plaintext that OpenSSL would end a handshake for is better dropped.

    record    type u8, version u16, epoch u16, seq u48, length u16          13 bytes, 4.1
    fragment  type u8, length u24, message_seq u16, offset u24, length u24  12 bytes, 4.2.2
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from dataplane.proto.errors import BadPacket

RECORD_HEADER_BYTES = 13
FRAGMENT_HEADER_BYTES = 12

# What is left of a 1,280-byte IPv6 packet, with room for a tunnel or two.
MAX_DATAGRAM_BYTES = 1200

CHANGE_CIPHER_SPEC = 20
ALERT = 21
HANDSHAKE = 22
APPLICATION_DATA = 23

# A first ClientHello and HelloVerifyRequest may wear the version of DTLS 1.0 (RFC 6347 4.2.1).
_PLAINTEXT_VERSIONS = (b"\xfe\xff", b"\xfe\xfd")
_VERSION = b"\xfe\xfd"


class Record(NamedTuple):
    """data: the whole record with its header."""

    content_type: int
    epoch: int
    seq: int
    data: bytes

    @property
    def body(self) -> bytes:
        return self.data[RECORD_HEADER_BYTES:]


class Fragment(NamedTuple):
    """A handshake message, or a part of one; its lengths are known to be consistent."""

    message_type: int
    message_bytes: int
    message_seq: int
    offset: int
    fragment_bytes: int


def parse_records(datagram: bytes) -> list[Record]:
    """The records of a datagram, at least one. Raises BadPacket("drop_dtls_malformed") for the
    whole of it unless every record is of DTLS 1.2, of epoch 0 or 1, and fits."""
    records = []
    offset = 0
    while offset < len(datagram):
        header = datagram[offset : offset + RECORD_HEADER_BYTES]
        if len(header) < RECORD_HEADER_BYTES:
            malformed("record header cut short")
        end = offset + RECORD_HEADER_BYTES + int.from_bytes(header[11:13], "big")
        if end == offset + RECORD_HEADER_BYTES or end > len(datagram):
            malformed("record length")
        content_type, version = header[0], header[1:3]
        epoch = int.from_bytes(header[3:5], "big")
        if not CHANGE_CIPHER_SPEC <= content_type <= APPLICATION_DATA:
            malformed("content type")
        if epoch > 1 or (version != _VERSION and (epoch or version not in _PLAINTEXT_VERSIONS)):
            malformed("epoch or version")
        seq = int.from_bytes(header[5:11], "big")
        records.append(Record(content_type, epoch, seq, datagram[offset:end]))
        offset = end
    if not records:
        malformed("empty")
    return records


def parse_fragments(record: Record) -> list[Fragment]:
    """The handshake fragments of a plaintext record, at least one.
    Raises BadPacket("drop_dtls_malformed")."""
    body = record.body
    fragments = []
    offset = 0
    while offset < len(body):
        header = body[offset : offset + FRAGMENT_HEADER_BYTES]
        if len(header) < FRAGMENT_HEADER_BYTES:
            malformed("fragment header cut short")
        fragment = Fragment(
            message_type=header[0],
            message_bytes=int.from_bytes(header[1:4], "big"),
            message_seq=int.from_bytes(header[4:6], "big"),
            offset=int.from_bytes(header[6:9], "big"),
            fragment_bytes=int.from_bytes(header[9:12], "big"),
        )
        if fragment.offset + fragment.fragment_bytes > fragment.message_bytes:
            malformed("fragment beyond its message")
        if fragment.fragment_bytes == 0 and fragment.message_bytes:
            malformed("empty fragment")
        offset += FRAGMENT_HEADER_BYTES + fragment.fragment_bytes
        if offset > len(body):
            malformed("fragment cut short")
        fragments.append(fragment)
    return fragments


def split_own_records(data: bytes) -> list[Record]:
    """What OpenSSL wrote, at record boundaries."""
    records = []
    offset = 0
    while offset < len(data):
        end = offset + RECORD_HEADER_BYTES + int.from_bytes(data[offset + 11 : offset + 13], "big")
        raw = data[offset:end]
        epoch, seq = int.from_bytes(raw[3:5], "big"), int.from_bytes(raw[5:11], "big")
        records.append(Record(raw[0], epoch, seq, raw))
        offset = end
    return records


def renumber(data: bytes, seq: int) -> bytes:
    """A plaintext record under another sequence number."""
    return data[:5] + seq.to_bytes(6, "big") + data[11:]


def pack_datagrams(records: Iterable[bytes]) -> list[bytes]:
    """As many whole records to a datagram as MAX_DATAGRAM_BYTES allows; a longer record (the
    application's choice) travels alone."""
    datagrams: list[bytes] = []
    for record in records:
        if datagrams and len(datagrams[-1]) + len(record) <= MAX_DATAGRAM_BYTES:
            datagrams[-1] += record
        else:
            datagrams.append(record)
    return datagrams


def malformed(detail: str) -> NoReturn:
    raise BadPacket("drop_dtls_malformed", detail)
