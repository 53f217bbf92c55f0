"""libopus through the C ABI: RFC 6716 packets, decoder, encoder and its controls."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import subprocess
import sys
from typing import Any

import cffi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.errors import BadPacket
from dataplane.proto.opus import (
    APPLICATIONS,
    RATES,
    OpusDecoder,
    OpusEncoder,
    find_libopus,
    frame_samples,
    has_lbrr,
    packet_samples,
)
from tests.support.opus_stream import level, offline_decode, opus_packets, voice

TOCS = st.integers(0, 255)


def _raw() -> tuple[Any, Any]:
    """libopus's packet functions, loaded apart from the code under test."""
    ffi = cffi.FFI()
    ffi.cdef(
        """
        int opus_packet_parse(const unsigned char *, int32_t, unsigned char *,
                              const unsigned char *[48], int16_t [48], int *);
        int opus_packet_get_nb_samples(const unsigned char *, int32_t, int32_t);
        int opus_packet_has_lbrr(const unsigned char *, int32_t);
        """
    )
    return ffi, ffi.dlopen(find_libopus().path)


RAW_FFI, RAW = _raw()


def test_the_wheel_s_libopus_is_preferred_and_names_itself() -> None:
    library = find_libopus()
    assert library.source == f"av {importlib.metadata.version('av')}"
    assert library.version.startswith("libopus 1.")
    assert find_libopus() is library


def test_av_itself_is_not_imported() -> None:
    program = (
        "import sys; from dataplane.proto.opus import find_libopus; find_libopus();"
        "sys.exit('av' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- packets ---


@settings(deadline=None, max_examples=500)
@given(TOCS, st.binary(max_size=60))
def test_packet_samples_takes_what_libopus_takes(toc: int, rest: bytes) -> None:
    check_against_libopus(bytes((toc,)) + rest)


@settings(deadline=None, max_examples=500)
@given(
    st.integers(0, 31).map(lambda config: config << 3 | 3),
    st.integers(0, 255),
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 252, 254, 255]), max_size=8),
    st.integers(0, 30) | st.integers(1200, 1300),
)
def test_packet_samples_takes_what_libopus_takes_of_code_3(
    toc: int, count: int, lengths: list[int], size: int
) -> None:
    check_against_libopus(bytes((toc, count, *lengths)) + bytes(size))


@pytest.mark.parametrize("toc", range(256))
def test_packet_samples_at_the_largest_sizes(toc: int) -> None:
    for size in (0, 1, 2, 1274, 1275, 1276, 1277, 2550, 2551, 2552, 3825):
        check_against_libopus(bytes((toc,)) + bytes((255,)) * size)
        check_against_libopus(bytes((toc,)) + bytes((3,)) * size)


def check_against_libopus(payload: bytes) -> None:
    packet = RAW_FFI.new("unsigned char[]", payload)
    frames = RAW_FFI.new("const unsigned char *[48]")
    sizes = RAW_FFI.new("int16_t[48]")
    null = RAW_FFI.NULL
    count = RAW.opus_packet_parse(packet, len(payload), null, frames, sizes, null)
    for rate in RATES:
        if count > 0:
            expected = RAW.opus_packet_get_nb_samples(payload, len(payload), rate)
            assert packet_samples(payload, rate) == expected
            assert frame_samples(payload, rate) * count == expected
        else:
            with pytest.raises(BadPacket) as caught:
                packet_samples(payload, rate)
            assert caught.value.reason == "drop_opus_invalid"


def test_packets_last_from_2_5_to_120_ms() -> None:
    celt_2_5 = 16 << 3
    assert packet_samples(bytes((celt_2_5,)), 48000) == 120
    assert packet_samples(bytes((celt_2_5 | 3, 48)) + bytes(48), 48000) == 5760
    assert packet_samples(bytes((3 << 3 | 1,)) + bytes(2), 8000) == 960  # twice 60 ms
    with pytest.raises(BadPacket):
        packet_samples(bytes((3 << 3 | 3, 3)) + bytes(3), 8000)  # three times


@settings(deadline=None, max_examples=500)
@given(TOCS, st.binary(max_size=30))
def test_has_lbrr_agrees_with_libopus(toc: int, rest: bytes) -> None:
    payload = bytes((toc,)) + rest
    try:
        expected = RAW.opus_packet_has_lbrr(payload, len(payload))
    except AttributeError:
        pytest.skip("this libopus has no opus_packet_has_lbrr")
    assert has_lbrr(payload) == (expected == 1)


# --- decoder ---


@pytest.mark.parametrize("rate", RATES)
def test_decodes_as_libopus_does(rate: int) -> None:
    payloads = opus_packets(voice(48000, 600), 48000)
    decoder = OpusDecoder(rate)
    pcm = b"".join(decoder.decode(payload) for payload in payloads)
    assert len(pcm) == rate * 600 // 1000 * 2
    assert pcm == offline_decode(payloads, rate)
    decoder.reset()
    assert b"".join(decoder.decode(payload) for payload in payloads) == pcm


def test_stereo_is_down_mixed() -> None:
    quiet_right = opus_packets(voice(48000, 400, channels=2), 48000, channels=2, bitrate=64000)
    assert all(payload[0] & 4 for payload in quiet_right[1:])
    decoder = OpusDecoder(16000)
    pcm = b"".join(decoder.decode(payload) for payload in quiet_right)
    assert pcm == offline_decode(quiet_right, 16000)
    mono = np.frombuffer(voice(48000, 400, channels=2), "<i2").reshape(-1, 2).mean(axis=1)
    assert level(pcm) == pytest.approx(float(np.sqrt(np.mean(mono**2))), rel=0.15)


@pytest.mark.parametrize("payload", [b"", b"\x01\x00", b"\x03", b"\x7f\x00", b"\xff\xff"])
def test_invalid_payload(payload: bytes) -> None:
    decoder = OpusDecoder(16000)
    before = opus_packets(voice(16000, 40), 16000)
    decoder.decode(before[0])
    with pytest.raises(BadPacket) as caught:
        decoder.decode(payload)
    assert caught.value.reason == "drop_opus_invalid"
    assert decoder.decode(before[1]) == offline_decode(before, 16000)[640:]


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=80))
def test_what_passes_packet_samples_decodes(payload: bytes) -> None:
    try:
        samples = packet_samples(payload, 8000)
    except BadPacket:
        return
    assert len(OpusDecoder(8000).decode(payload)) == 2 * samples


def test_concealment_continues_the_voice_then_fades() -> None:
    payloads = opus_packets(voice(48000, 120), 48000)  # within a syllable
    decoder = OpusDecoder(24000)
    for payload in payloads:
        last = decoder.decode(payload)
    concealed = decoder.conceal(24000)
    assert len(concealed) == 48000  # longer than one call to libopus may be
    assert level(concealed[:480]) > 0.3 * level(last)
    assert level(concealed[-4800:]) < 0.05 * level(last)


def test_concealment_comes_in_steps_of_2_5_ms() -> None:
    decoder = OpusDecoder(16000)
    assert decoder.conceal(39) == b""
    assert len(decoder.conceal(79)) == 80


def test_fec_restores_the_packet_before() -> None:
    payloads = opus_packets(voice(16000, 600), 16000, fec_loss_percent=25)
    truth = offline_decode(payloads, 16000)
    at = next(i for i in range(12, 30) if has_lbrr(payloads[i]))
    span = slice((at - 1) * 640, at * 640)
    decoder = OpusDecoder(16000)
    for payload in payloads[: at - 1]:
        decoder.decode(payload)
    assert decoder.recoverable_samples(payloads[at]) == 320
    restored = decoder.decode_fec(payloads[at], 320)
    assert similarity(restored, truth[span]) > 0.8
    assert len(decoder.decode(payloads[at])) == 640


def similarity(a: bytes, b: bytes) -> float:
    return float(np.corrcoef(np.frombuffer(a, "<i2"), np.frombuffer(b, "<i2"))[0, 1])


def test_nothing_is_recoverable_without_fec_or_after_celt() -> None:
    plain = opus_packets(voice(16000, 100), 16000)
    celt = opus_packets(voice(48000, 40), 48000, application=APPLICATIONS["lowdelay"])
    silk = opus_packets(voice(16000, 600), 16000, fec_loss_percent=25)
    protected = next(payload for payload in silk[10:] if has_lbrr(payload))
    decoder = OpusDecoder(16000)
    assert decoder.recoverable_samples(plain[-1]) == 0
    assert decoder.recoverable_samples(celt[0]) == 0
    assert decoder.recoverable_samples(protected) == 320
    decoder.decode(celt[0])
    assert decoder.recoverable_samples(protected) == 0  # libopus would only conceal


# --- encoder ---


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("application", APPLICATIONS)
def test_encodes_20_ms_at_every_rate(rate: int, application: str) -> None:
    pcm = voice(rate, 300)
    encoder = OpusEncoder(rate, complexity=5, bitrate=32000, application=application)
    step = rate // 50 * 2
    payloads = [encoder.encode(pcm[i : i + step]) for i in range(0, len(pcm), step)]
    assert all(packet_samples(payload, 48000) == 960 for payload in payloads)
    celt = [payload[0] >= 0x80 for payload in payloads]
    assert all(celt) or application != "lowdelay"
    assert not any(celt) or application != "voip" or rate == 48000
    heard = offline_decode(payloads, rate)
    assert level(heard) == pytest.approx(level(pcm), rel=0.3)


def encoded_bytes(rate: int = 16000, **options: Any) -> int:
    pcm = voice(rate, 1000)
    encoder = OpusEncoder(rate, **options)
    step = rate // 50 * 2
    return sum(len(encoder.encode(pcm[i : i + step])) for i in range(0, len(pcm), step))


def test_bitrate_is_obeyed() -> None:
    assert (
        encoded_bytes(bitrate=12000)
        < encoded_bytes(bitrate=32000)
        < encoded_bytes(rate=48000, bitrate=96000)
    )
    assert encoded_bytes(bitrate=24000, vbr=False) == 3000  # 60 bytes each 20 ms


def test_fec_can_be_switched_while_it_runs() -> None:
    pcm = voice(16000, 600)
    encoder = OpusEncoder(16000, bitrate=24000)
    plain = [encoder.encode(pcm[i : i + 640]) for i in range(0, len(pcm), 640)]
    encoder.set_fec(True, 25)
    protected = [encoder.encode(pcm[i : i + 640]) for i in range(0, len(pcm), 640)]
    assert not any(map(has_lbrr, plain))
    assert sum(map(has_lbrr, protected)) > 10


def test_dtx_says_silence_in_two_bytes_or_fewer() -> None:
    encoder = OpusEncoder(16000, dtx=True)
    silence = [encoder.encode(bytes(640)) for _ in range(100)]
    assert sum(len(payload) <= 2 for payload in silence) > 60
    encoder = OpusEncoder(16000, dtx=False)
    assert all(len(encoder.encode(bytes(640))) > 2 for _ in range(100))


def test_complexity_and_bitrate_can_be_changed() -> None:
    encoder = OpusEncoder(16000)
    encoder.set_complexity(0)
    encoder.set_bitrate(6000)
    pcm = voice(16000, 200)
    assert sum(len(encoder.encode(pcm[i : i + 640])) for i in range(0, 6400, 640)) < 400


def test_reset_forgets_the_stream() -> None:
    pcm = voice(16000, 40)
    encoder = OpusEncoder(16000)
    first = [encoder.encode(pcm[:640]), encoder.encode(pcm[640:])]
    assert encoder.encode(pcm[:640]) != first[0]
    encoder.reset()
    assert [encoder.encode(pcm[:640]), encoder.encode(pcm[640:])] == first


@pytest.mark.parametrize("size", [0, 638, 639, 641, 642, 100_000])
def test_pcm_of_another_length_is_refused(size: int) -> None:
    encoder = OpusEncoder(16000)
    with pytest.raises(ValueError, match=f"{size} bytes"):
        encoder.encode(bytes(size))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rate": 44100}, "44100"),
        ({"rate": 16000, "application": "music"}, "music"),
        ({"rate": 16000, "complexity": 11}, "11"),
        ({"rate": 16000, "expected_loss_percent": 101}, "101"),
        ({"rate": 16000, "bitrate": -5}, "-5"),
    ],
)
def test_settings_that_libopus_refuses(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        OpusEncoder(**options)


def test_decoder_at_a_rate_that_opus_does_not_have() -> None:
    with pytest.raises(ValueError, match="44100"):
        OpusDecoder(44100)


def test_the_system_s_libopus_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ctypes.util.find_library("opus")
    if path is None:
        pytest.skip("no libopus is installed beside the wheel's")
    monkeypatch.setattr(importlib.metadata, "distribution", _not_installed)
    library = find_libopus.__wrapped__()
    assert (library.path, library.source) == (path, "system")
    payload = OpusEncoder(16000, library=library).encode(voice(16000, 20))
    assert len(OpusDecoder(16000, library).decode(payload)) == 640
    assert has_lbrr(payload, library) in (True, False)


def _not_installed(name: str) -> None:
    raise importlib.metadata.PackageNotFoundError(name)
