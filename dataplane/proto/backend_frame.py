"""The backend protocol, version 1: frames between the edge and a backend over a stream.

A frame is a header of four bytes, big-endian, ``type << 24 | length``, and the payload.
Every type has a class here: ``encode()`` gives the whole frame, ``parse(payload)`` reads
a payload and raises BadPacket("backend_bad_frame"). Unknown types are ignored. Binary
fields are big-endian; JSON is UTF-8; PCM is s16le mono. Counts of samples are at rate_in
towards the backend and at rate_out from it, and start at 0 with READY.

A playout generation is the backend's own label for a stretch of audio: 0 at READY, then
what its last CLEAR said. PLAYED names the generation that it counts; CLEARED names the
old generation, the one that was cleared.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import orjson

from dataplane.proto.errors import BadPacket
from dataplane.proto.opus import RATES

VERSION = 1
FORMATS = ("pcm_s16le",)
"""Offered in START."""

HEADER_BYTES = 4
MAX_PAYLOAD_BYTES = 1 << 20
"""10 s of audio at 48 kHz fit; what claims more has lost its place in the stream."""
MAX_MARK_BYTES = 1024
DTMF_DIGITS = "0123456789*#ABCD"

_REASON = "backend_bad_frame"
_HEADER = struct.Struct("!I")
_CONCEALED = struct.Struct("!QIB")
_SPEECH = struct.Struct("!BQ")
_PLAYED = struct.Struct("!IQII")
_CLEAR = struct.Struct("!I")
_CLEARED = struct.Struct("!IQ")


class FrameType(IntEnum):
    START = 0x01
    READY = 0x02
    STOP = 0x0F
    AUDIO = 0x10
    CONCEALED = 0x11
    EVENT = 0x20
    DTMF = 0x21
    SPEECH = 0x22
    PLAYED = 0x30
    MARK = 0x31
    CLEAR = 0x32
    CLEARED = 0x33
    END = 0x34


class ConcealedHow(IntEnum):
    """Why samples are not what the client's microphone heard."""

    LOST = 1
    LATE = 2
    """It came, but after its place had been given up. Not yet told apart from LOST."""
    DTX = 3
    """The client sent nothing because nothing was said."""
    DROPPED = 4
    """It was heard, but the backend did not read in time. No AUDIO follows for these
    samples: the next AUDIO stands at first_sample + samples."""


def encode_frame(frame_type: int, payload: bytes = b"") -> bytes:
    """A whole frame. Raises ValueError for a payload over MAX_PAYLOAD_BYTES."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"payload of {len(payload)} bytes")
    return _HEADER.pack(frame_type << 24 | len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one incomplete frame and a read."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = HEADER_BYTES
        """Bytes in _rest from which on it is worth looking: no drip costs a copy each."""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Type and payload of each frame that data completes. Raises
        BadPacket("backend_bad_frame") for a header over the limit: the stream's framing is
        lost, and the connection is to be closed."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        frames = []
        offset = 0
        size = len(data)
        self._wanted = HEADER_BYTES
        while size - offset >= HEADER_BYTES:
            (header,) = _HEADER.unpack_from(data, offset)
            length = header & 0xFFFFFF
            if length > MAX_PAYLOAD_BYTES:
                raise BadPacket(_REASON, f"frame of {length} bytes")
            end = offset + HEADER_BYTES + length
            if end > size:
                self._wanted = HEADER_BYTES + length
                break
            frames.append((header >> 24, data[offset + HEADER_BYTES : end]))
            offset = end
        if offset < size:
            self._rest += data[offset:]
        return frames


def _load_json(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise BadPacket(_REASON, f"JSON: {error}") from None


def _load_object(payload: bytes) -> dict[str, Any]:
    value = _load_json(payload)
    if not isinstance(value, dict):
        raise BadPacket(_REASON, "not a JSON object")
    return value


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    if len(payload) != layout.size:
        raise BadPacket(_REASON, f"payload of {len(payload)} bytes instead of {layout.size}")
    return layout.unpack(payload)


@dataclass(frozen=True, slots=True)
class Start:
    """options: the session object of the offer. client_address: for people."""

    session_id: str
    backend: str
    options: Mapping[str, Any] | orjson.Fragment = field(default_factory=dict)
    client_address: str = ""
    rates: tuple[int, ...] = RATES
    formats: tuple[str, ...] = FORMATS
    version: int = VERSION

    def encode(self) -> bytes:
        return encode_frame(
            FrameType.START,
            orjson.dumps(
                {
                    "version": self.version,
                    "session_id": self.session_id,
                    "backend": self.backend,
                    "rates": self.rates,
                    "formats": self.formats,
                    "options": self.options,
                    "client": {"address": self.client_address},
                }
            ),
        )

    @classmethod
    def parse(cls, payload: bytes) -> Start:
        value = _load_object(payload)
        try:
            start = cls(
                session_id=value["session_id"],
                backend=value["backend"],
                options=value["options"],
                client_address=value["client"]["address"],
                rates=tuple(value["rates"]),
                formats=tuple(value["formats"]),
                version=value["version"],
            )
        except (KeyError, TypeError) as error:
            raise BadPacket(_REASON, f"START: {error!r}") from None
        if not isinstance(start.options, dict):
            raise BadPacket(_REASON, "START: options")
        return start


@dataclass(frozen=True, slots=True)
class Ready:
    """rate_in: Hz of what the backend hears. rate_out: Hz of what it says."""

    rate_in: int
    rate_out: int
    format: str = "pcm_s16le"

    def encode(self) -> bytes:
        body = {"rate_in": self.rate_in, "rate_out": self.rate_out, "format": self.format}
        return encode_frame(FrameType.READY, orjson.dumps(body))

    @classmethod
    def parse(cls, payload: bytes) -> Ready:
        value = _load_object(payload)
        rates = []
        for name in ("rate_in", "rate_out"):
            rate = value.get(name)
            if type(rate) is not int or rate not in RATES:
                raise BadPacket(_REASON, f"READY: {name} is {rate!r:.40}, not one of {RATES}")
            rates.append(rate)
        pcm_format = value.get("format", FORMATS[0])
        if pcm_format not in FORMATS:
            raise BadPacket(_REASON, f"READY: format {pcm_format!r:.40} was not offered")
        return cls(rates[0], rates[1], pcm_format)


@dataclass(frozen=True, slots=True)
class Stop:
    reason: str

    def encode(self) -> bytes:
        return encode_frame(FrameType.STOP, orjson.dumps({"reason": self.reason}))

    @classmethod
    def parse(cls, payload: bytes) -> Stop:
        reason = _load_object(payload).get("reason", "")
        if not isinstance(reason, str):
            raise BadPacket(_REASON, "STOP: reason is not a string")
        return cls(reason)


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """pcm: s16le mono, any whole number of samples."""

    pcm: bytes

    def encode(self) -> bytes:
        return _HEADER.pack(FrameType.AUDIO << 24 | len(self.pcm)) + self.pcm

    @classmethod
    def parse(cls, payload: bytes) -> AudioFrame:
        if len(payload) & 1:
            raise BadPacket(_REASON, f"AUDIO of {len(payload)} bytes is half a sample over")
        return cls(payload)


@dataclass(frozen=True, slots=True)
class Concealed:
    """The samples from first_sample on, which follow in AUDIO, were not heard."""

    first_sample: int
    samples: int
    how: ConcealedHow

    def encode(self) -> bytes:
        payload = _CONCEALED.pack(self.first_sample, self.samples, self.how)
        return encode_frame(FrameType.CONCEALED, payload)

    @classmethod
    def parse(cls, payload: bytes) -> Concealed:
        first_sample, samples, how = _unpack(_CONCEALED, payload)
        if how not in ConcealedHow.__members__.values():
            raise BadPacket(_REASON, f"CONCEALED: how {how}")
        return cls(first_sample, samples, ConcealedHow(how))


@dataclass(frozen=True, slots=True)
class Event:
    """text: one JSON value, UTF-8, passed on as it came."""

    text: bytes

    @property
    def value(self) -> Any:
        return orjson.loads(self.text)

    def encode(self) -> bytes:
        return encode_frame(FrameType.EVENT, self.text)

    @classmethod
    def parse(cls, payload: bytes) -> Event:
        _load_json(payload)
        return cls(payload)


@dataclass(frozen=True, slots=True)
class Dtmf:
    """digit: one of DTMF_DIGITS."""

    digit: str

    def encode(self) -> bytes:
        return encode_frame(FrameType.DTMF, self.digit.encode())

    @classmethod
    def parse(cls, payload: bytes) -> Dtmf:
        digit = payload.decode("ascii", "replace")
        if len(digit) != 1 or digit not in DTMF_DIGITS:
            raise BadPacket(_REASON, "DTMF: not one digit")
        return cls(digit)


@dataclass(frozen=True, slots=True)
class Speech:
    """The client began (started) or ceased to speak at this sample."""

    started: bool
    sample: int

    def encode(self) -> bytes:
        return encode_frame(FrameType.SPEECH, _SPEECH.pack(self.started, self.sample))

    @classmethod
    def parse(cls, payload: bytes) -> Speech:
        started, sample = _unpack(_SPEECH, payload)
        if started > 1:
            raise BadPacket(_REASON, f"SPEECH: {started}")
        return cls(bool(started), sample)


@dataclass(frozen=True, slots=True)
class Played:
    """samples: heard of this generation so far. room_ms: what can be pushed now."""

    generation: int
    samples: int
    queued_ms: int
    room_ms: int

    def encode(self) -> bytes:
        payload = _PLAYED.pack(self.generation, self.samples, self.queued_ms, self.room_ms)
        return encode_frame(FrameType.PLAYED, payload)

    @classmethod
    def parse(cls, payload: bytes) -> Played:
        return cls(*_unpack(_PLAYED, payload))


@dataclass(frozen=True, slots=True)
class Mark:
    """From the backend: a place in its audio. Back to it: that place was heard, or cleared."""

    name: str

    def encode(self) -> bytes:
        return encode_frame(FrameType.MARK, self.name.encode())

    @classmethod
    def parse(cls, payload: bytes) -> Mark:
        if len(payload) > MAX_MARK_BYTES:
            raise BadPacket(_REASON, f"MARK of {len(payload)} bytes")
        try:
            return cls(payload.decode())
        except UnicodeDecodeError:
            raise BadPacket(_REASON, "MARK is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class Clear:
    """Stop what plays; the audio that follows belongs to this generation."""

    generation: int

    def encode(self) -> bytes:
        return encode_frame(FrameType.CLEAR, _CLEAR.pack(self.generation))

    @classmethod
    def parse(cls, payload: bytes) -> Clear:
        return cls(*_unpack(_CLEAR, payload))


@dataclass(frozen=True, slots=True)
class Cleared:
    """generation: the old one, that was cleared. samples: heard of it until then."""

    generation: int
    samples: int

    def encode(self) -> bytes:
        return encode_frame(FrameType.CLEARED, _CLEARED.pack(self.generation, self.samples))

    @classmethod
    def parse(cls, payload: bytes) -> Cleared:
        return cls(*_unpack(_CLEARED, payload))


@dataclass(frozen=True, slots=True)
class End:
    """The utterance is complete: what is queued need not wait for more."""

    def encode(self) -> bytes:
        return encode_frame(FrameType.END)

    @classmethod
    def parse(cls, payload: bytes) -> End:
        if payload:
            raise BadPacket(_REASON, f"END of {len(payload)} bytes")
        return cls()


BackendFrame = (
    Start
    | Ready
    | Stop
    | AudioFrame
    | Concealed
    | Event
    | Dtmf
    | Speech
    | Played
    | Mark
    | Clear
    | Cleared
    | End
)

_PARSERS: dict[int, Callable[[bytes], BackendFrame]] = {
    FrameType.START: Start.parse,
    FrameType.READY: Ready.parse,
    FrameType.STOP: Stop.parse,
    FrameType.AUDIO: AudioFrame.parse,
    FrameType.CONCEALED: Concealed.parse,
    FrameType.EVENT: Event.parse,
    FrameType.DTMF: Dtmf.parse,
    FrameType.SPEECH: Speech.parse,
    FrameType.PLAYED: Played.parse,
    FrameType.MARK: Mark.parse,
    FrameType.CLEAR: Clear.parse,
    FrameType.CLEARED: Cleared.parse,
    FrameType.END: End.parse,
}


def parse_payload(frame_type: int, payload: bytes) -> BackendFrame | None:
    """The typed frame; None for a type that we do not know and that is to be ignored.
    Raises BadPacket("backend_bad_frame")."""
    parser = _PARSERS.get(frame_type)
    return parser(payload) if parser is not None else None
