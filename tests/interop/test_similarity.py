"""The yardstick of the browser tests, tried on journeys of which we know the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tests.interop.similarity import compare
from tests.support.speech import OTHER_SENTENCE, RATE, SENTENCE, Samples, speak


def test_speech_is_the_same_at_every_run(speech: Samples) -> None:
    assert np.array_equal(speech, speak(SENTENCE))


def test_a_shifted_quieter_noisy_copy_is_recognized(speech: Samples) -> None:
    shift = 3 * RATE + 77
    repeated = np.tile(speech.astype(np.float64), 3)[shift : shift + 7 * RATE]
    noise = np.random.default_rng(1).normal(0, 30, len(repeated))
    heard = (0.3 * repeated + noise).astype(np.int16)

    likeness = compare(speech, heard)

    assert likeness.envelope > 0.97
    assert likeness.waveform > 0.95
    assert abs(likeness.shift_ms - shift * 1000 // RATE) <= 10


@pytest.mark.parametrize("wrong", ["other words", "backwards", "silence", "noise", "a tone"])
def test_other_sounds_are_not(speech: Samples, wrong: str) -> None:
    heard = _wrong_sounds(speech)[wrong]

    likeness = compare(speech, heard)

    assert likeness.envelope < 0.6
    assert likeness.waveform < 0.4


def _wrong_sounds(speech: Samples) -> dict[str, Samples]:
    noise = np.random.default_rng(2).normal(0, 3000, 7 * RATE)
    tone = 9000 * np.sin(np.arange(7 * RATE) * 0.06)
    return {
        "other words": speak(OTHER_SENTENCE),
        "backwards": speech[::-1].copy(),
        "silence": np.zeros(7 * RATE, np.int16),
        "noise": noise.astype(np.int16),
        "a tone": tone.astype(np.int16),
    }


def test_nothing_heard_is_an_error(speech: Samples) -> None:
    with pytest.raises(ValueError, match="only 0 samples"):
        compare(speech, np.zeros(0, np.int16))
