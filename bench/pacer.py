"""Many peers speaking at once from one task, at little cost per peer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from bench.media import FRAME_NS
from bench.peer import Peer

TICKS_PER_FRAME = 10  # peers are spread over the 20 ms in steps of 2 ms, as callers would be
TICK_NS = FRAME_NS // TICKS_PER_FRAME
LATE_NS = 5_000_000


class Pacer:
    """Sends each peer's next packet every 20 ms on absolute deadlines.

    packets: the Opus packets that every peer says, over and over; peers start
    at different places, so that no two say the same at once.
    """

    def __init__(self, packets: Sequence[bytes]) -> None:
        self._packets = packets
        self._ticks: list[list[tuple[Peer, int]]] = [[] for _ in range(TICKS_PER_FRAME)]
        self._count = 0
        self.sent = 0
        self.late = 0
        """Packets sent more than 5 ms after they were due: the load was not what it should be."""

    def add(self, peer: Peer) -> None:
        """The peer speaks from the next frame on."""
        offset = self._count * 37
        self._ticks[self._count % TICKS_PER_FRAME].append((peer, offset))
        self._count += 1

    async def run(self) -> None:
        """Sends until cancelled."""
        start = time.monotonic_ns()
        packets, size = self._packets, len(self._packets)
        tick = 0
        while True:
            due = start + tick * TICK_NS
            behind = time.monotonic_ns() - due
            if behind < 0:
                await asyncio.sleep(-behind / 1e9)
            elif tick % TICKS_PER_FRAME == 0:
                await asyncio.sleep(0)  # reading must go on even when sending is late
            frame, phase = divmod(tick, TICKS_PER_FRAME)
            for peer, offset in self._ticks[phase]:
                peer.send_audio(packets[(frame + offset) % size])
                self.sent += 1
                self.late += behind > LATE_NS
            tick += 1
