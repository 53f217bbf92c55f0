"""STUN messages, well-formed or bent, byte by byte (RFC 8489)."""

from __future__ import annotations

import struct

from aioice import stun

from dataplane.proto.ufrag import ClusterKeys, Ufrag, encode_ufrag, ice_pwd

KEYS = ClusterKeys({0: bytes(range(32)), 7: bytes(range(16))}, active=0)
COOKIE = 0x2112A442
TRANSACTION = bytes(range(100, 112))

USERNAME = 0x0006
MESSAGE_INTEGRITY = 0x0008
MESSAGE_INTEGRITY_SHA256 = 0x001C
PRIORITY = 0x0024
SOFTWARE = 0x8022


def ufrag_text(slot: int = 1, generation: int = 1, **fields: int) -> str:
    values = {"key_id": 0, "node_id": 1, "worker": 0, "slot": slot, "generation": generation}
    return encode_ufrag(Ufrag(**(values | fields)), KEYS)


def attribute(kind: int, value: bytes, padding: bytes = b"\x00") -> bytes:
    pad = -len(value) % 4
    return struct.pack("!HH", kind, len(value)) + value + padding * pad


def message(*attributes: bytes, kind: int = 0x0001, cookie: int = COOKIE) -> bytes:
    body = b"".join(attributes)
    return struct.pack("!HHI", kind, len(body), cookie) + TRANSACTION + body


def check(ufrag: str, remote: str = "abcd", pwd: str | None = None) -> bytes:
    """A whole connectivity check with MESSAGE-INTEGRITY, by aioice's encoder."""
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    request.attributes["USERNAME"] = f"{ufrag}:{remote}"
    request.attributes["PRIORITY"] = 1
    request.attributes["ICE-CONTROLLING"] = 1
    request.attributes["USE-CANDIDATE"] = None
    if pwd is None:
        pwd = ice_pwd(ufrag, KEYS) if len(ufrag) == 24 else "foreign"
    request.add_message_integrity(pwd.encode())
    return bytes(request)


def mac_keys() -> dict[int, bytes]:
    return {key_id: KEYS.mac_key(key_id) for key_id in KEYS.key_ids}
