"""demux.c against RFC 7983 section 7 and against the oracle."""

from __future__ import annotations

import pytest

from dataplane.kernel import binding
from dataplane.proto.demux import classify
from dataplane.shm.enums import Demux

TRUTH = [
    (1, range(4), Demux.STUN),
    (2, range(4, 16), Demux.NONE),
    (3, range(16, 20), Demux.NONE),  # ZRTP
    (4, range(20, 64), Demux.DTLS),
    (5, range(64, 80), Demux.NONE),  # TURN channel
    (6, range(80, 128), Demux.NONE),
    (7, range(128, 192), Demux.RTP),
    (8, range(192, 256), Demux.NONE),
]


@pytest.mark.parametrize(("number", "first_bytes", "expected"), TRUTH)
def test_rfc7983_first_byte(number: int, first_bytes: range, expected: Demux) -> None:
    for first in first_bytes:
        for rest in (b"", b"\x00", b"\xff" * 100):
            assert binding.demux(bytes([first]) + rest) == expected, number
            assert binding.demux(bytes([first]) + rest) == classify(bytes([first]) + rest)


def test_table_is_whole() -> None:
    assert [b for _, r, _ in TRUTH for b in r] == list(range(256))


def test_nothing_has_no_class() -> None:
    assert binding.demux(b"") == Demux.NONE
