"""A client's Opus packets, and what libopus itself makes of them: the oracle of the uplink.

Straight on libopus's C functions, not through the classes under test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dataplane.proto.opus import find_libopus

_SET_BITRATE, _SET_INBAND_FEC, _SET_PACKET_LOSS_PERC, _SET_DTX = 4002, 4012, 4014, 4016
_VOIP = 2048


def voice(rate: int, ms: int, channels: int = 1, seed: int = 1) -> bytes:
    """s16le that an encoder takes for speech: a gliding glottal pulse in syllables, breath
    between. Channels are interleaved and differ."""
    rng = np.random.default_rng(seed)
    t = np.arange(rate * ms // 1000) / rate
    pitch = 2 * np.pi * np.cumsum(130 + 30 * np.sin(2 * np.pi * 0.7 * t)) / rate
    tone = sum(np.sin(k * pitch + k * k) / k for k in range(1, min(25, rate // 400)))
    syllables = np.clip(np.sin(2 * np.pi * 2.1 * t + seed) + 0.3, 0, 1)
    left = 5000 * tone * syllables + 60 * rng.standard_normal(len(t))
    planes = [left, 0.5 * left + 40 * rng.standard_normal(len(t))][:channels]
    return np.stack(planes, axis=1).round().astype("<i2").tobytes()


def opus_packets(
    pcm: bytes,
    rate: int,
    ptime_ms: int = 20,
    channels: int = 1,
    *,
    bitrate: int = 32_000,
    fec_loss_percent: int = 0,
    dtx: bool = False,
    application: int = _VOIP,
) -> list[bytes]:
    """One payload for every ptime_ms (10, 20, 40 or 60) of PCM."""
    library = find_libopus()
    ffi, lib = library.ffi, library.lib
    error = ffi.new("int *")
    encoder = ffi.gc(
        lib.opus_encoder_create(rate, channels, application, error), lib.opus_encoder_destroy
    )
    assert error[0] == 0
    for request, value in {
        _SET_BITRATE: bitrate,
        _SET_INBAND_FEC: int(fec_loss_percent > 0),
        _SET_PACKET_LOSS_PERC: fec_loss_percent,
        _SET_DTX: int(dtx),
    }.items():
        assert lib.opus_encoder_ctl(encoder, request, ffi.cast("int32_t", value)) == 0
    samples = rate * ptime_ms // 1000
    packet = ffi.new("unsigned char[]", 1275)
    payloads = []
    for offset in range(0, len(pcm), 2 * samples * channels):
        frame = pcm[offset : offset + 2 * samples * channels]
        size = lib.opus_encode(encoder, frame, samples, packet, 1275)
        assert size > 0
        payloads.append(ffi.buffer(packet)[:size])
    return payloads


def offline_decode(payloads: Iterable[bytes], rate: int) -> bytes:
    """Mono PCM of the payloads in order, by one decoder."""
    library = find_libopus()
    ffi, lib = library.ffi, library.lib
    error = ffi.new("int *")
    decoder = ffi.gc(lib.opus_decoder_create(rate, 1, error), lib.opus_decoder_destroy)
    assert error[0] == 0
    pcm = ffi.new("int16_t[]", 5760)
    out = []
    for payload in payloads:
        samples = lib.opus_decode(decoder, payload, len(payload), pcm, 5760, 0)
        assert samples > 0
        out.append(ffi.buffer(pcm)[: 2 * samples])
    return b"".join(out)


def level(pcm: bytes) -> float:
    """Root mean square of s16le."""
    samples: Sequence[float] = np.frombuffer(pcm, "<i2").astype(float)
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
