"""Speech for the fake microphones: made by espeak-ng, the same at every run."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 48_000
"""Samples per second of everything made here: what WebRTC captures."""

# Words of very different length with pauses between them: the envelope of each
# sentence is unlike the other's at every shift.
SENTENCE = "Earshot. [[_:]] One, two; seventeen thousand. [[_:]] Go. Where rivers bend, we wait."
OTHER_SENTENCE = "No, no, never. [[_:]] Extraordinary possibilities! Up. [[_:]] Down. Sixty six."

Samples = NDArray[np.int16]


class SpeechError(AssertionError):
    """espeak-ng is missing or failed."""


def speak(text: str, *, words_per_minute: int = 150, tail_ms: int = 600) -> Samples:
    """Mono PCM at `RATE` of a spoken sentence, peak at half of full scale.

    `[[_:]]` in the text is a short pause. `tail_ms` of silence follow, so that a
    microphone that plays it in a loop has a gap at the seam.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise SpeechError("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    command = [program, "-v", "en-gb", "-s", str(words_per_minute), "--stdout", text]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    if done.returncode != 0:
        raise SpeechError(f"espeak-ng failed: {done.stderr.decode(errors='replace')}")
    samples, rate = _read_wav(done.stdout)
    spoken = _resample(samples, rate)
    spoken *= 0.5 * 32767 / max(1.0, float(np.abs(spoken).max()))
    # To whole packets of 20 ms, so that repetitions fall on the same grid.
    tail = np.zeros(RATE * tail_ms // 1000 - len(spoken) % (RATE // 50))
    return np.concatenate([spoken, tail]).round().astype(np.int16)


def write_wav(path: Path, samples: Samples) -> Path:
    """Writes mono PCM at `RATE`; returns the path."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def _read_wav(data: bytes) -> tuple[NDArray[np.float64], int]:
    # espeak-ng writes a stream: the sizes in its header are not those of the data.
    with wave.open(io.BytesIO(data)) as file:
        rate = file.getframerate()
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise SpeechError("espeak-ng did not write 16-bit mono")
    body = data[data.index(b"data") + 8 :]
    return np.frombuffer(body[: len(body) // 2 * 2], "<i2").astype(np.float64), rate


def _resample(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """To `RATE`, band-limited and exact: zeros appended to the whole file's spectrum.

    The file is padded to a whole number of seconds, so that both lengths are whole.
    """
    seconds = -(-len(samples) // rate)
    padded = np.zeros(seconds * rate)
    padded[: len(samples)] = samples
    spectrum = np.fft.rfft(padded)
    longer = np.fft.irfft(spectrum, seconds * RATE) * (RATE / rate)
    return longer[: len(samples) * RATE // rate]
