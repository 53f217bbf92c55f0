"""Opus (RFC 6716) through libopus itself, mono, at the backend's rate.

libopus is loaded by its C ABI (cffi), preferably the copy that the ``av`` wheel
carries: newer and faster than a distribution's, and there without apt. ``av`` itself
is not imported.

Nothing is resampled: libopus decodes to, and encodes from, 8, 12, 16, 24 or 48 kHz.
A stereo stream is down-mixed by decoding it with one channel (RFC 6716 4.5.2 and
opus_decoder_create). PCM is s16le, so the machine has to be little-endian.

Not done: more than one channel, multistream, DRED (not built into either wheel).
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cffi

from dataplane.proto.errors import BadPacket

RATES = (8000, 12000, 16000, 24000, 48000)
"""Hz; the rates libopus takes."""

MAX_PACKET_BYTES = 1275
"""RFC 6716 3.4 [R2]: the largest frame, and all that one 20 ms packet can need."""
MAX_PACKET_US = 120_000
"""RFC 6716 3.4 [R5]: the longest packet."""
SHORTEST_FRAME_US = 2_500

APPLICATIONS = {"voip": 2048, "audio": 2049, "lowdelay": 2051}

_REASON = "drop_opus_invalid"
_OPUS_OK = 0

# opus_defines.h
_SET_BITRATE = 4002
_SET_VBR = 4006
_SET_COMPLEXITY = 4010
_SET_INBAND_FEC = 4012
_SET_PACKET_LOSS_PERC = 4014
_SET_DTX = 4016
_SET_SIGNAL = 4024
_RESET_STATE = 4028
_SIGNAL_VOICE = 3001

# opus_encode takes int16 samples; declared as bytes, because cffi passes a bytes
# object as a char pointer without a copy or a wrapper.
_CDEF = """
typedef struct OpusEncoder OpusEncoder;
typedef struct OpusDecoder OpusDecoder;
const char *opus_get_version_string(void);
const char *opus_strerror(int error);
OpusEncoder *opus_encoder_create(int32_t rate, int channels, int application, int *error);
void opus_encoder_destroy(OpusEncoder *st);
int opus_encoder_ctl(OpusEncoder *st, int request, ...);
int32_t opus_encode(OpusEncoder *st, const char *pcm, int frame_samples,
                    unsigned char *packet, int32_t max_bytes);
OpusDecoder *opus_decoder_create(int32_t rate, int channels, int *error);
void opus_decoder_destroy(OpusDecoder *st);
int opus_decoder_ctl(OpusDecoder *st, int request, ...);
int opus_decode(OpusDecoder *st, const unsigned char *packet, int32_t packet_bytes,
                int16_t *pcm, int max_samples, int decode_fec);
int opus_packet_parse(const unsigned char *packet, int32_t packet_bytes, unsigned char *toc,
                      const unsigned char *frames[48], int16_t sizes[48], int *payload_offset);
"""


class OpusUnavailableError(RuntimeError):
    """No usable libopus on this machine. The message says what to install."""


@dataclass(frozen=True)
class OpusLibrary:
    """A loaded libopus. version: its own string ("libopus 1.6.1"). source: for people."""

    path: str
    version: str
    source: str
    ffi: Any
    lib: Any


def _candidates() -> Iterator[tuple[str, str]]:
    """Paths to try and where each comes from, best first."""
    try:
        wheel = importlib.metadata.distribution("av")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        for file in wheel.files or ():
            if file.name.startswith("libopus-") and ".so" in file.name:
                yield str(file.locate()), f"av {wheel.version}"
    system = ctypes.util.find_library("opus")
    if system is not None:
        yield system, "system"


@functools.lru_cache(maxsize=1)
def find_libopus() -> OpusLibrary:
    """Load libopus once per process. Raises OpusUnavailableError."""
    if sys.byteorder != "little":
        raise OpusUnavailableError("PCM is little-endian and so must be the machine")
    ffi = cffi.FFI()
    ffi.cdef(_CDEF)
    failures = []
    for path, source in _candidates():
        try:
            lib = ffi.dlopen(path)
            version = ffi.string(lib.opus_get_version_string()).decode("ascii", "replace")
        except (OSError, AttributeError) as error:
            failures.append(f"{path}: {error}")
            continue
        return OpusLibrary(path, version, source, ffi, lib)
    tried = "; ".join(failures) or "no candidate was found"
    raise OpusUnavailableError(
        f"libopus cannot be loaded ({tried}); install libopus0 or the av wheel"
    )


# --- packets: RFC 6716 section 3 ---


def _frame_us_of(toc: int) -> int:
    config = toc >> 3
    if config < 12:  # SILK
        return (10_000, 20_000, 40_000, 60_000)[config & 3]
    if config < 16:  # hybrid
        return (10_000, 20_000)[config & 1]
    return (2_500, 5_000, 10_000, 20_000)[config & 3]  # CELT


_FRAME_US = tuple(_frame_us_of(toc) for toc in range(256))
_CELT_ONLY_TOC = 0x80  # config 16 and above


def frame_samples(payload: bytes, rate: int) -> int:
    """Length of the packet's Opus frames (one, or each of several) at rate (Hz)."""
    return _FRAME_US[payload[0]] * rate // 1_000_000


def packet_samples(payload: bytes, rate: int) -> int:
    """Length of a packet in samples at rate (Hz), its framing checked in full by rules R1 to
    R7 of RFC 6716 3.4: what passes here is what opus_decode takes.

    Raises BadPacket("drop_opus_invalid").
    """
    size = len(payload)
    if size == 0:
        raise BadPacket(_REASON, "empty")
    toc = payload[0]
    code = toc & 3
    if code == 0:
        if size - 1 > MAX_PACKET_BYTES:
            raise BadPacket(_REASON, f"frame of {size - 1} bytes")
        count = 1
    elif code == 3:
        count = _check_code_3(payload)
    else:
        count = 2
        if code == 1:
            if size & 1 == 0 or (size - 1) // 2 > MAX_PACKET_BYTES:
                raise BadPacket(_REASON, f"two equal frames in {size - 1} bytes")
        else:
            offset, first = _frame_length(payload, 1, size)
            if not first <= size - offset <= first + MAX_PACKET_BYTES:
                raise BadPacket(_REASON, "frame lengths")
    return count * _FRAME_US[toc] * rate // 1_000_000


def _frame_length(payload: bytes, offset: int, end: int) -> tuple[int, int]:
    """RFC 6716 3.2.1. Returns the offset after the length, and the length."""
    if offset < end:
        length = payload[offset]
        if length < 252:
            return offset + 1, length
        if offset + 1 < end:
            return offset + 2, length + 4 * payload[offset + 1]
    raise BadPacket(_REASON, "cut within a frame length")


def _check_code_3(payload: bytes) -> int:
    """RFC 6716 3.2.5. Returns the number of frames."""
    end = len(payload)
    if end < 2:
        raise BadPacket(_REASON, "no frame count")
    head = payload[1]
    count = head & 0x3F
    if count == 0 or count * _FRAME_US[payload[0]] > MAX_PACKET_US:
        raise BadPacket(_REASON, f"{count} frames")
    offset = 2
    if head & 0x40:
        padding = 255
        while padding == 255:
            if offset >= end:
                raise BadPacket(_REASON, "cut within the padding length")
            padding = payload[offset]
            offset += 1
            end -= padding - (padding == 255)
    if head & 0x80:
        total = 0
        for _ in range(count - 1):
            offset, length = _frame_length(payload, offset, end)
            total += length
        last = end - offset - total
    else:
        last, odd = divmod(end - offset, count)
        if odd:
            raise BadPacket(_REASON, "equal frames that do not divide")
    if not 0 <= last <= MAX_PACKET_BYTES:
        raise BadPacket(_REASON, f"last frame of {last} bytes")
    return count


# --- decoder ---


class OpusDecoder:
    """One stream to mono PCM. rate: Hz, of RATES. Not for use by two threads at once."""

    def __init__(self, rate: int, library: OpusLibrary | None = None) -> None:
        library = library or find_libopus()
        ffi, lib = library.ffi, library.lib
        self.rate = rate
        error = ffi.new("int *")
        state = lib.opus_decoder_create(rate, 1, error)
        if error[0] != _OPUS_OK:
            raise ValueError(f"Opus decoder at {rate} Hz: {_error_text(library, error[0])}")
        self._library = library
        self._null = ffi.NULL
        self._state = ffi.gc(state, lib.opus_decoder_destroy)
        self._opus_decode = lib.opus_decode
        self._max_samples = rate * MAX_PACKET_US // 1_000_000
        self._pcm = ffi.new("int16_t[]", self._max_samples)
        self._pcm_bytes = ffi.buffer(self._pcm)
        self._last_was_celt = False

    def decode(self, payload: bytes) -> bytes:
        """PCM of one packet. Raises BadPacket("drop_opus_invalid")."""
        if not payload:
            raise BadPacket(_REASON, "empty")  # which opus_decode would take for a lost packet
        samples = self._opus_decode(
            self._state, payload, len(payload), self._pcm, self._max_samples, 0
        )
        if samples < 0:
            raise BadPacket(_REASON, _error_text(self._library, samples))
        self._last_was_celt = payload[0] >= _CELT_ONLY_TOC
        pcm: bytes = self._pcm_bytes[: 2 * samples]
        return pcm

    def conceal(self, samples: int) -> bytes:
        """PCM for a lost stretch (PLC; comfort noise in a pause). samples: rounded down to
        whole 2.5 ms, which is all that libopus can conceal; the answer may be shorter."""
        step = self.rate * SHORTEST_FRAME_US // 1_000_000
        left = samples - samples % step
        parts = []
        while left > 0:
            part = min(left, self._max_samples)
            parts.append(self._decode_lost(self._null, 0, part, 0))
            left -= part
        return b"".join(parts)

    def recoverable_samples(self, payload: bytes) -> int:
        """How much of what was lost just before this packet decode_fec can restore from it;
        0 when it carries no LBRR frames (RFC 6716 4.2.4), or they would not be used."""
        if payload[0] >= _CELT_ONLY_TOC or self._last_was_celt:
            # After a CELT-only packet libopus conceals instead (opus_decode_native).
            return 0
        if not has_lbrr(payload, self._library):
            return 0
        return frame_samples(payload, self.rate)

    def decode_fec(self, payload: bytes, samples: int) -> bytes:
        """PCM of the stretch before this packet, from the copy it carries. samples: a whole
        number of 2.5 ms, at most 120 ms. Decode the packet itself afterwards."""
        return self._decode_lost(payload, len(payload), samples, 1)

    def _decode_lost(self, payload: Any, size: int, samples: int, fec: int) -> bytes:
        got = self._opus_decode(self._state, payload, size, self._pcm, samples, fec)
        if got < 0:
            raise BadPacket(_REASON, _error_text(self._library, got))
        pcm: bytes = self._pcm_bytes[: 2 * got]
        return pcm

    def reset(self) -> None:
        """Forget the stream, as at creation."""
        self._library.lib.opus_decoder_ctl(self._state, _RESET_STATE)
        self._last_was_celt = False


def has_lbrr(payload: bytes, library: OpusLibrary | None = None) -> bool:
    """Whether a packet carries in-band FEC, as opus_packet_has_lbrr has it (libopus 1.5;
    Debian 12's does not have the function, so it is done here).

    RFC 6716 4.2.3: a SILK frame starts with a VAD bit per 20 ms, then one LBRR bit, for the
    mid channel and then for the side; at these odds (1/2) the range coder stores plain bits.
    """
    toc = payload[0]
    if toc >= _CELT_ONLY_TOC:
        return False
    first = payload[1:] if toc & 3 == 0 else _first_frame(payload, library or find_libopus())
    if not first:
        return False
    silk_frames = max(1, _FRAME_US[toc] // 20_000)
    lbrr = first[0] >> (7 - silk_frames) & 1
    if toc & 4:  # stereo
        lbrr |= first[0] >> (6 - 2 * silk_frames) & 1
    return bool(lbrr)


def _first_frame(payload: bytes, library: OpusLibrary) -> bytes:
    ffi, lib = library.ffi, library.lib
    frames = ffi.new("const unsigned char *[48]")
    sizes = ffi.new("int16_t[48]")
    # A copy that stays put: the frame pointers point into it.
    packet = ffi.new("unsigned char[]", payload)
    count = lib.opus_packet_parse(packet, len(payload), ffi.NULL, frames, sizes, ffi.NULL)
    if count < 1:
        return b""
    frame: bytes = ffi.buffer(frames[0], sizes[0])[:]
    return frame


# --- encoder ---


class OpusEncoder:
    """Mono PCM to one stream, with libopus's own controls. rate: Hz, of RATES.

    application: of APPLICATIONS. bitrate: bits per second, 500..512,000. complexity: 0..10.
    expected_loss_percent steers how much in-band FEC is spent when fec is on. Raises
    ValueError for what libopus refuses.
    """

    def __init__(
        self,
        rate: int,
        complexity: int = 5,
        bitrate: int = 32_000,
        application: str = "voip",
        fec: bool = False,
        expected_loss_percent: int = 0,
        dtx: bool = False,
        vbr: bool = True,
        library: OpusLibrary | None = None,
    ) -> None:
        library = library or find_libopus()
        ffi, lib = library.ffi, library.lib
        if application not in APPLICATIONS:
            raise ValueError(f"application {application!r} is none of {', '.join(APPLICATIONS)}")
        self.rate = rate
        error = ffi.new("int *")
        state = lib.opus_encoder_create(rate, 1, APPLICATIONS[application], error)
        if error[0] != _OPUS_OK:
            raise ValueError(f"Opus encoder at {rate} Hz: {_error_text(library, error[0])}")
        self._library = library
        self._state = ffi.gc(state, lib.opus_encoder_destroy)
        self._opus_encode = lib.opus_encode
        self._packet = ffi.new("unsigned char[]", MAX_PACKET_BYTES)
        self._packet_bytes = ffi.buffer(self._packet)
        self._control(_SET_SIGNAL, _SIGNAL_VOICE)
        self.set_complexity(complexity)
        self.set_bitrate(bitrate)
        self.set_fec(fec, expected_loss_percent)
        self.set_dtx(dtx)
        self._control(_SET_VBR, int(vbr))

    def encode(self, pcm: bytes) -> bytes:
        """One packet from one frame (2.5, 5, 10, 20, 40 or 60 ms; here always 20).

        With DTX a packet of two bytes or fewer says silence and need not be sent. Raises
        ValueError for any other length of PCM.
        """
        if len(pcm) & 1:
            raise ValueError(f"{len(pcm)} bytes are no whole number of samples")
        size = self._opus_encode(self._state, pcm, len(pcm) >> 1, self._packet, MAX_PACKET_BYTES)
        if size < 0:
            raise ValueError(f"{len(pcm)} bytes of PCM: {_error_text(self._library, size)}")
        packet: bytes = self._packet_bytes[:size]
        return packet

    def set_bitrate(self, bitrate: int) -> None:
        """bitrate: bits per second."""
        self._control(_SET_BITRATE, bitrate)

    def set_complexity(self, complexity: int) -> None:
        """complexity: 0 (cheapest) to 10."""
        self._control(_SET_COMPLEXITY, complexity)

    def set_fec(self, enabled: bool, expected_loss_percent: int) -> None:
        """In-band FEC; libopus spends on it what expected_loss_percent (0..100) asks for."""
        self._control(_SET_INBAND_FEC, int(enabled))
        self._control(_SET_PACKET_LOSS_PERC, expected_loss_percent)

    def set_dtx(self, enabled: bool) -> None:
        """Discontinuous transmission in silence."""
        self._control(_SET_DTX, int(enabled))

    def reset(self) -> None:
        """Forget the stream; the settings stay."""
        self._library.lib.opus_encoder_ctl(self._state, _RESET_STATE)

    def _control(self, request: int, value: int) -> None:
        library = self._library
        argument = library.ffi.cast("int32_t", value)
        result = library.lib.opus_encoder_ctl(self._state, request, argument)
        if result != _OPUS_OK:
            reason = _error_text(library, result)
            raise ValueError(f"Opus encoder control {request} = {value}: {reason}")


def _error_text(library: OpusLibrary, code: int) -> str:
    text: bytes = library.ffi.string(library.lib.opus_strerror(min(code, 0)))
    return text.decode("ascii", "replace")
