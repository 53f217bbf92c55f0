"""How alike two recordings of speech are, when one of them has been on a journey.

A journey shifts the sound by some hundred milliseconds, scales it, codes it twice
and lets a jitter buffer stretch it here and there. Two measures bear with that,
each in its way: the envelope's correlation sees the whole sentence, its pauses and
stresses; the waveform's sees the sound itself, half a second at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.support.speech import RATE, Samples

STEP_MS = 10
_STEP = RATE * STEP_MS // 1000
_PIECE_MS = 500
_SEARCH_MS = 120
"""A jitter buffer may stretch or shorten by this much around the main shift."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Likeness:
    """What comparing `heard` with an endlessly repeated `sent` gives."""

    envelope: float
    """Best Pearson correlation of 10 ms RMS envelopes, -1 to 1."""
    waveform: float
    """Median over the voiced half seconds of their best normalized
    cross-correlation with the sound sent at that time, 0 to 1."""
    shift_ms: int
    """Where in `sent` the recording begins."""


def compare(sent: Samples, heard: Samples) -> Likeness:
    """Both mono at `speech.RATE`; `sent` is what the fake microphone repeats.

    Raises ValueError when there is nothing to compare.
    """
    reference, recording = _envelope(sent), _envelope(heard)
    if len(recording) < 1000 // STEP_MS:
        raise ValueError(f"only {len(heard)} samples were heard")
    period = len(reference)
    # One period of shifts, each with a whole recording behind it.
    repeated = np.tile(reference, 2 + len(recording) // period)
    scores = [
        _pearson(repeated[shift : shift + len(recording)], recording) for shift in range(period)
    ]
    best = int(np.argmax(scores))
    return Likeness(
        envelope=float(scores[best]),
        waveform=_waveform(sent, heard, best * _STEP),
        shift_ms=best * STEP_MS,
    )


def _envelope(samples: Samples) -> Floats:
    whole = len(samples) // _STEP
    blocks = samples[: whole * _STEP].astype(np.float64).reshape(whole, _STEP)
    return np.asarray(np.sqrt((blocks**2).mean(axis=1)))


def _pearson(one: Floats, other: Floats) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm else 0.0


def _waveform(sent: Samples, heard: Samples, shift: int) -> float:
    piece, search = RATE * _PIECE_MS // 1000, RATE * _SEARCH_MS // 1000
    repeats = 3 + len(heard) // len(sent)
    reference = np.tile(sent.astype(np.float64), repeats)
    scores = []
    # A pause says nothing of the sound; nor does a recording of nothing but one.
    loud = max(10.0, 0.1 * float(np.sqrt((heard.astype(np.float64) ** 2).mean())))
    for start in range(0, len(heard) - piece, piece):
        part = heard[start : start + piece].astype(np.float64)
        if np.sqrt((part**2).mean()) < loud:
            continue
        # A period later, so that the search may also go back from a shift of nought.
        at = len(sent) + shift + start - search
        scores.append(_best_match(reference[at : at + piece + 2 * search], part))
    return float(np.median(scores)) if scores else 0.0


def _best_match(longer: Floats, part: Floats) -> float:
    """The highest normalized cross-correlation of `part` anywhere within `longer`."""
    size = len(longer)
    spectrum = np.fft.rfft(longer) * np.conj(np.fft.rfft(part, size))
    products = np.fft.irfft(spectrum, size)[: size - len(part) + 1]
    sums = np.concatenate([[0.0], np.cumsum(longer**2)])
    energies = sums[len(part) :] - sums[: size - len(part) + 1]
    norms = np.sqrt(np.maximum(energies, 1.0) * float((part**2).sum()))
    return float((products / norms).max())
