"""Which transceiver gets the next call. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEARTBEAT_LIMIT_NS = 3_000_000_000
"""A worker that has not been heard for so long takes no new calls. Workers
write their heartbeat several times a second."""


@dataclass(frozen=True, slots=True)
class TransceiverLoad:
    """A transceiver as placement sees it."""

    worker: int
    sessions: int
    """Calls that have been given to it and have not ended."""
    running: bool
    """The process that last opened the worker's row still exists."""
    heartbeat_age_ns: int

    @property
    def live(self) -> bool:
        return self.running and self.heartbeat_age_ns <= HEARTBEAT_LIMIT_NS


def place(transceivers: Iterable[TransceiverLoad]) -> int | None:
    """The live transceiver with the fewest sessions, the lowest index among
    equals; None if none is live."""
    live = [transceiver for transceiver in transceivers if transceiver.live]
    if not live:
        return None
    return min(live, key=lambda transceiver: (transceiver.sessions, transceiver.worker)).worker
