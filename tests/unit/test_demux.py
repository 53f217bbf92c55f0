"""RFC 7983 section 7."""

from __future__ import annotations

import pytest

from dataplane.proto.demux import Demux, classify


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 3, Demux.STUN),
        (4, 15, Demux.NONE),
        (16, 19, Demux.NONE),  # ZRTP
        (20, 63, Demux.DTLS),
        (64, 79, Demux.NONE),  # TURN channel
        (80, 127, Demux.NONE),
        (128, 191, Demux.RTP),
        (192, 255, Demux.NONE),
    ],
)
def test_rfc7983_first_byte(low: int, high: int, expected: Demux) -> None:
    for first in range(low, high + 1):
        assert classify(bytes([first])) is expected
        assert classify(bytes([first]) + b"\xff" * 40) is expected


def test_nothing_has_no_class() -> None:
    assert classify(b"") is Demux.NONE
