"""What the synthetic clients say: voice-like PCM, and the Opus packets made of it.

espeak-ng speaks where it is installed; otherwise a synthetic voice (a glottal
buzz whose pitch, formants and loudness move as in speech, with pauses). Either
way the same call gives the same samples, so systems are compared on one input.
"""

from __future__ import annotations

import array
import io
import math
import shutil
import subprocess
import wave
from functools import cache

from dataplane.proto.opus import OpusEncoder, find_libopus

CLIENT_RATE = 48000
FRAME_SAMPLES = CLIENT_RATE // 50  # 20 ms
CLIENT_BITRATE = 32000  # what Chromium settles on for one voice
CLIENT_COMPLEXITY = 9  # Chromium's for voice on a desktop

SENTENCE = (
    "The edge hears every word that you say. When you interrupt, it stops at once, "
    "and it knows how much of the answer you have heard. Seven wizards jog quickly by the lake."
)


def synthetic_voice(seconds: float, rate: int = CLIENT_RATE) -> bytes:
    """A deterministic voice-like signal, s16le mono.

    Syllables come at about 4 Hz and phrases of 2 s are parted by 0.25 s of
    silence; the pitch glides, so that a correlation has one clear peak.
    """
    samples = array.array("h", bytes(2 * round(seconds * rate)))
    phase = 0.0
    for i in range(len(samples)):
        t = i / rate
        pitch_hz = 118 + 24 * math.sin(2 * math.pi * 0.31 * t) + 9 * math.sin(2 * math.pi * 1.7 * t)
        phase += 2 * math.pi * pitch_hz / rate
        if t % 2.25 >= 2.0:
            continue
        formant = 3.0 + 2.0 * math.sin(2 * math.pi * 2.3 * t)
        buzz = (
            math.sin(phase)
            + 0.6 * math.sin(round(formant) * phase)
            + 0.3 * math.sin(round(2.5 * formant) * phase + 0.5)
            + 0.12 * math.sin(19 * phase)
        )
        loudness = 0.25 + 0.75 * math.sin(math.pi * 4.1 * t) ** 2
        samples[i] = round(7000 * loudness * buzz)
    return samples.tobytes()


def spoken_voice(seconds: float, rate: int = CLIENT_RATE) -> bytes | None:
    """SENTENCE by espeak-ng, over and over, s16le mono; None where it is not installed."""
    program = shutil.which("espeak-ng")
    if program is None:
        return None
    spoken = subprocess.run(
        [program, "-v", "en", "--stdout", SENTENCE], check=True, capture_output=True
    ).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        source_rate = file.getframerate()
        # espeak-ng does not know the length when it writes the header.
        source = array.array("h", file.readframes(len(spoken) // 2)[: (len(spoken) - 44) & ~1])
    return _resample(source, source_rate, rate, round(seconds * rate)).tobytes()


def _resample(
    source: array.array[int], source_rate: int, rate: int, count: int
) -> array.array[int]:
    """Linear interpolation, repeating the source: good enough as a codec's load."""
    step = source_rate / rate
    size = len(source) - 1
    out = array.array("h", bytes(2 * count))
    for i in range(count):
        whole, part = divmod(i * step, 1.0)
        at = int(whole) % size
        out[i] = round(source[at] * (1 - part) + source[at + 1] * part)
    return out


def encode_voice(pcm: bytes, *, rate: int = CLIENT_RATE) -> list[bytes]:
    """Opus packets of 20 ms as a browser makes them, in-band FEC included.

    pcm: s16le mono at rate; a last partial frame is left out.
    """
    encoder = OpusEncoder(
        rate,
        CLIENT_COMPLEXITY,
        CLIENT_BITRATE,
        application="voip",
        fec=True,
        expected_loss_percent=0,
        dtx=False,
    )
    frame_bytes = 2 * rate // 50
    whole = len(pcm) - len(pcm) % frame_bytes
    return [encoder.encode(pcm[at : at + frame_bytes]) for at in range(0, whole, frame_bytes)]


@cache
def voice_packets(seconds: float) -> tuple[bytes, ...]:
    """The usual input: speech as Opus packets of 20 ms."""
    pcm = spoken_voice(seconds) or synthetic_voice(seconds)
    return tuple(encode_voice(pcm))


def libopus_version() -> str:
    """For the report."""
    library = find_libopus()
    return f"{library.version.removeprefix('libopus ')} ({library.source})"
