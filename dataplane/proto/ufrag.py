"""The ICE ufrag that routes and proves (DESIGN section 2).

18 bytes, base64 without padding: 24 characters, and the standard alphabet is exactly
ice-char (RFC 8839 5.4). Multi-byte fields are big-endian.

    0      version << 4 | key id
    1-2    node id
    3      transceiver worker
    4-6    slot
    7-9    generation
    10-17  SipHash-2-4 of bytes 0-9 under the cluster's key, little-endian

24 characters hold 144 bits, which is 18 bytes with none to spare, so a ufrag has one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.proto.errors import BadPacket
from dataplane.proto.siphash import siphash24

__all__ = ["ClusterKeys", "Ufrag", "encode_ufrag", "ice_pwd", "parse_ufrag", "siphash24"]

UFRAG_VERSION = 1
UFRAG_CHARS = 24
UFRAG_BYTES = 18
_MAC_BYTES = 8
_BODY_BYTES = UFRAG_BYTES - _MAC_BYTES
_PWD_CHARS = 24  # RFC 8445 5.3 asks for at least 22
_MIN_SECRET_BYTES = 16

# A request whose ufrag is not ours, or not any more, looks the same to us as one meant for
# another service on this port: silence and one counter.
_FOREIGN = "drop_stun_foreign_ufrag"


@dataclass(frozen=True, slots=True)
class Ufrag:
    """key_id 0..15; node_id 16 bits; worker 8 bits; slot and generation 24 bits each."""

    key_id: int
    node_id: int
    worker: int
    slot: int
    generation: int


class ClusterKeys:
    """The cluster's secrets by key id; two are valid at a time while they rotate.

    secrets: key id (0..15) to at least 16 bytes. active: the id that new ufrags are made with.
    """

    def __init__(self, secrets: Mapping[int, bytes], active: int) -> None:
        if active not in secrets:
            raise ValueError(f"the active key id {active} has no secret")
        for key_id, secret in secrets.items():
            if not 0 <= key_id <= 15:
                raise ValueError(f"key id {key_id} is outside 0..15")
            if len(secret) < _MIN_SECRET_BYTES:
                raise ValueError(f"the secret of key id {key_id} is under 16 bytes")
        self.active = active
        self._secrets = {key_id: bytes(secret) for key_id, secret in secrets.items()}
        self._mac_keys = {
            key_id: hmac.digest(secret, b"earshot ufrag-mac", "sha256")[:16]
            for key_id, secret in self._secrets.items()
        }

    @classmethod
    def from_text(cls, text: str) -> ClusterKeys:
        """Parse "0:<hex>,1:<hex>"; the first is the active one. Raises ValueError."""
        secrets: dict[int, bytes] = {}
        for part in text.split(","):
            key_id, colon, secret = part.strip().partition(":")
            if not colon or not (key_id.isascii() and key_id.isdigit()):
                raise ValueError("cluster keys are written as ID:HEX,ID:HEX")
            if int(key_id) in secrets:
                raise ValueError(f"key id {int(key_id)} is given twice")
            secrets[int(key_id)] = bytes.fromhex(secret)
        return cls(secrets, next(iter(secrets)))

    def to_text(self) -> str:
        ordered = sorted(self._secrets, key=lambda key_id: (key_id != self.active, key_id))
        return ",".join(f"{key_id}:{self._secrets[key_id].hex()}" for key_id in ordered)

    @property
    def key_ids(self) -> tuple[int, ...]:
        return tuple(self._secrets)

    def mac_key(self, key_id: int) -> bytes:
        """The 16-byte SipHash key of the ufrag's MAC. Raises KeyError for an unknown id."""
        return self._mac_keys[key_id]

    def secret(self, key_id: int) -> bytes:
        """Raises KeyError for an unknown id."""
        return self._secrets[key_id]

    def __repr__(self) -> str:  # a secret must not end in a traceback
        return f"ClusterKeys(key_ids={self.key_ids}, active={self.active})"


def encode_ufrag(ufrag: Ufrag, keys: ClusterKeys) -> str:
    """24 ice-chars. Raises OverflowError if a field does not fit, KeyError for an unknown key."""
    if not 0 <= ufrag.key_id <= 15:
        raise OverflowError("key id is outside 0..15")
    body = (
        bytes([UFRAG_VERSION << 4 | ufrag.key_id])
        + ufrag.node_id.to_bytes(2, "big")
        + ufrag.worker.to_bytes(1, "big")
        + ufrag.slot.to_bytes(3, "big")
        + ufrag.generation.to_bytes(3, "big")
    )
    mac = siphash24(keys.mac_key(ufrag.key_id), body).to_bytes(_MAC_BYTES, "little")
    return base64.b64encode(body + mac).decode("ascii")


def parse_ufrag(text: bytes, keys: ClusterKeys) -> Ufrag:
    """Check the MAC and take the fields out.

    text: the part of USERNAME before the colon. Raises BadPacket("drop_stun_foreign_ufrag").
    """
    if len(text) != UFRAG_CHARS:
        raise BadPacket(_FOREIGN, "length")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPacket(_FOREIGN, "alphabet") from error
    # Padding inside the 24 characters is valid base64, but gives fewer bytes.
    if len(raw) != UFRAG_BYTES or raw[0] >> 4 != UFRAG_VERSION:
        raise BadPacket(_FOREIGN, "version")
    key_id = raw[0] & 0x0F
    if key_id not in keys.key_ids:
        raise BadPacket(_FOREIGN, "key id")
    body, mac = raw[:_BODY_BYTES], raw[_BODY_BYTES:]
    ours = siphash24(keys.mac_key(key_id), body).to_bytes(_MAC_BYTES, "little")
    if not hmac.compare_digest(mac, ours):
        raise BadPacket(_FOREIGN, "mac")
    return Ufrag(
        key_id=key_id,
        node_id=int.from_bytes(body[1:3], "big"),
        worker=body[3],
        slot=int.from_bytes(body[4:7], "big"),
        generation=int.from_bytes(body[7:10], "big"),
    )


def ice_pwd(local_ufrag: str, keys: ClusterKeys) -> str:
    """The password that belongs to a ufrag of ours: 24 ice-chars, the same on every node.

    Raises ValueError if the text is not a ufrag, KeyError if its key id is unknown. The MAC is
    not looked at: without the secret the password of a forged ufrag is as unknown as any.
    """
    raw = base64.b64decode(local_ufrag, validate=True)
    if len(raw) != UFRAG_BYTES:
        raise ValueError("not a ufrag of ours")
    digest = hmac.digest(
        keys.secret(raw[0] & 0x0F), b"earshot ice-pwd" + local_ufrag.encode("ascii"), "sha256"
    )
    return base64.b64encode(digest)[:_PWD_CHARS].decode("ascii")
