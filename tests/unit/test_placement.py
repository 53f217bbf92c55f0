"""The fewest sessions on a live transceiver."""

from __future__ import annotations

import pytest

from controlplane.placement import HEARTBEAT_LIMIT_NS, TransceiverLoad, place


def load(worker: int, sessions: int, running: bool = True, age_ns: int = 0) -> TransceiverLoad:
    return TransceiverLoad(worker, sessions, running, age_ns)


@pytest.mark.parametrize(
    ("transceivers", "chosen"),
    [
        ([], None),
        ([load(0, 5), load(1, 4)], 1),
        ([load(0, 4), load(1, 4)], 0),
        ([load(1, 4), load(0, 4)], 0),
        ([load(0, 0, running=False), load(1, 900)], 1),
        ([load(0, 0, age_ns=HEARTBEAT_LIMIT_NS + 1), load(1, 900)], 1),
        ([load(0, 0, age_ns=HEARTBEAT_LIMIT_NS), load(1, 900)], 0),
        ([load(0, 0, running=False), load(1, 0, age_ns=10**12)], None),
    ],
)
def test_place(transceivers: list[TransceiverLoad], chosen: int | None) -> None:
    assert place(transceivers) == chosen


def test_calls_are_spread() -> None:
    sessions = [0, 0, 0]
    for _ in range(30):
        chosen = place(load(i, n) for i, n in enumerate(sessions))
        assert chosen is not None
        sessions[chosen] += 1
    assert sessions == [10, 10, 10]
