"""The session table: what the control plane agreed with each client."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from dataplane.kernel import binding
from dataplane.kernel.binding import CData, HasRegion, Region
from dataplane.shm.enums import (  # noqa: F401 - re-exported for users of this table
    BackendState,
    CallState,
    Codec,
    EndReason,
    FingerprintAlgorithm,
    RegionKind,
    SessionState,
)

FINGERPRINT_BYTES = {
    FingerprintAlgorithm.SHA256: 32,
    FingerprintAlgorithm.SHA384: 48,
    FingerprintAlgorithm.SHA512: 64,
}

# A read collides with a write only when the writer was preempted inside its
# microsecond; giving it the processor a few times is enough.
READ_TRIES = 8


@dataclass(frozen=True, slots=True)
class Ident:
    """The one word of a slot that the packet path reads."""

    state: SessionState
    worker: int
    previous_generation: int
    """Still answered to after an ICE restart; 0: none."""
    generation: int

    def to_word(self) -> int:
        names = self.previous_generation << 24 | self.generation
        return self.state << 56 | self.worker << 48 | names

    @classmethod
    def from_word(cls, word: int) -> Ident:
        mask = binding.GENERATION_MASK
        return cls(SessionState(word >> 56), word >> 48 & 0xFF, word >> 24 & mask, word & mask)


@dataclass(slots=True)
class SessionConfig:
    """Every field of ``ek_session_config``, and the options. Times are
    CLOCK_MONOTONIC ns unless the name says unix."""

    call_id: str
    generation: int
    remote_fingerprint: bytes
    fingerprint_algorithm: int = FingerprintAlgorithm.SHA256
    remote_ufrag: str = ""
    mid: str = ""
    created_unix_ns: int = 0
    offer_deadline_ns: int = 0
    end_deadline_ns: int = 0
    closed_ns: int = 0
    local_ssrc: int = 0
    remote_ssrc: int = 0
    sctp_port: int = 0
    sctp_max_message_bytes: int = 0
    backend_id: int = 0
    codec: int = Codec.OPUS
    audio_payload_type: int = 0
    red_payload_type: int = binding.NOT_AGREED
    dtmf_payload_type: int = binding.NOT_AGREED
    audio_level_ext_id: int = binding.NOT_AGREED
    mid_ext_id: int = binding.NOT_AGREED
    client_sends: bool = True
    client_receives: bool = True
    end_reason: int = 0
    dtls_active: bool = True
    nack: bool = False
    ptime_ms: int = 20
    options: bytes = b""


_TEXT_FIELDS = ("call_id", "mid", "remote_ufrag")
_FLAG_FIELDS = ("client_sends", "client_receives", "dtls_active", "nack")
_PLAIN_FIELDS = tuple(
    field.name
    for field in fields(SessionConfig)
    if field.name not in (*_TEXT_FIELDS, *_FLAG_FIELDS, "remote_fingerprint", "options")
)


class SessionTable:
    """View of the session table. ``publish``, ``set_state``, ``free`` and
    ``recover`` are the control plane's alone."""

    def __init__(self, segment: HasRegion) -> None:
        self.segment = segment
        self.region: Region = segment.region
        self.row_count = self.region.row_count

    def ident(self, slot: int) -> Ident:
        """One atomic load. Raises IndexError outside the table."""
        return Ident.from_word(binding.session_ident(self.region.row(slot)))

    def read(self, slot: int) -> tuple[Ident, SessionConfig] | None:
        """One consistent write of the row; None when the slot is free or could
        not be read (its writer stands still in the middle of a write)."""
        row = self.region.row(slot)
        for _ in range(READ_TRIES):
            verdict, word, config, options = binding.session_read(row)
            if verdict == binding.READ_OK:
                return Ident.from_word(word), _from_struct(config, options)
            if verdict == binding.READ_EMPTY:
                return None
            os.sched_yield()
        return None

    def publish(self, slot: int, ident: Ident, config: SessionConfig) -> None:
        """Write the whole row; the ident comes last. Raises ValueError when a
        field does not fit, with the row untouched."""
        if config.generation != ident.generation or not ident.generation:
            raise ValueError("a row's configuration is of its ident's generation, never 0")
        struct = _to_struct(config)
        row = self.region.writable_row(slot)
        binding.session_publish(row, ident.to_word(), struct, config.options)

    def set_state(
        self, slot: int, state: SessionState, end_reason: int = 0, now_ns: int = 0
    ) -> None:
        """Move a live slot on; sets ``closed_ns`` and ``end_reason`` too."""
        binding.session_set_state(self.region.writable_row(slot), state, end_reason, now_ns)

    def free(self, slot: int) -> None:
        """Free the slot. Its generation stays readable in the ident, so that the
        next allocation moves on from it."""
        binding.session_free(self.region.writable_row(slot))

    def recover(self) -> list[int]:
        """For a new control plane: mend the rows that a dead one left in the
        middle of a write. One that was being published is free afterwards."""
        rows = range(self.row_count)
        return [slot for slot in rows if binding.session_recover(self.region.writable_row(slot))]


def _to_struct(config: SessionConfig) -> CData:
    struct = binding.new_session_config()
    for name in _TEXT_FIELDS:
        encoded = getattr(config, name).encode()
        limit = len(getattr(struct, name)) - 1
        if len(encoded) > limit or 0 in encoded:
            raise ValueError(f"{name}: {len(encoded)} bytes, limit {limit} without NUL")
        setattr(struct, name, encoded)
    for name in _FLAG_FIELDS:
        setattr(struct, name, int(getattr(config, name)))
    for name in _PLAIN_FIELDS:
        try:
            setattr(struct, name, int(getattr(config, name)))
        except OverflowError as error:
            raise ValueError(f"{name}: {error}") from None
    expected = FINGERPRINT_BYTES.get(FingerprintAlgorithm(config.fingerprint_algorithm))
    if len(config.remote_fingerprint) != expected:
        raise ValueError(f"remote_fingerprint: {len(config.remote_fingerprint)} bytes")
    if len(config.options) > binding.OPTIONS_BYTES:
        raise ValueError(f"options: {len(config.options)} bytes, limit {binding.OPTIONS_BYTES}")
    padding = bytes(len(struct.remote_fingerprint) - expected)
    struct.remote_fingerprint = list(config.remote_fingerprint + padding)
    return struct


def _from_struct(struct: CData, options: bytes) -> SessionConfig:
    algorithm = FingerprintAlgorithm(struct.fingerprint_algorithm)
    length = FINGERPRINT_BYTES[algorithm]
    values: dict[str, Any] = {name: getattr(struct, name) for name in _PLAIN_FIELDS}
    values |= {name: binding.text_of(getattr(struct, name)) for name in _TEXT_FIELDS}
    values |= {name: bool(getattr(struct, name)) for name in _FLAG_FIELDS}
    fingerprint = bytes(struct.remote_fingerprint)[:length]
    return SessionConfig(remote_fingerprint=fingerprint, options=options, **values)
