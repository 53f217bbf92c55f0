"""Calls per core: what the media of one call costs the process that carries it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from bench.cpu import cpu_ns, resident_bytes
from bench.media import FRAME_NS
from bench.node import Server
from bench.pacer import Pacer
from bench.peer import Peer

SETTLE_S = 1.0
CONNECT_AT_ONCE = 4
FRAMES_PER_S = 1_000_000_000 // FRAME_NS

# A server is full when more than 1 in 1,000 playout frames leave over 5 ms late.
LATE_SHARE_LIMIT = 0.001
# Beyond this the process is out of CPU, whatever its own counters say.
CPU_SHARE_LIMIT = 0.95
# Echo that comes back short of this share of what was sent: the server is not keeping up.
RETURNED_SHARE_LIMIT = 0.95
# One frame late is over the limit where few are played, and any neighbour on the machine can
# cause it: a server is full when it fails at every try.
TRIES = 3


@dataclass(frozen=True)
class Step:
    """One step of a ramp."""

    calls: int
    cpu_us_per_frame_pair: float
    """CPU time of the media process per frame that came back: one decoded and one encoded."""
    cpu_share: float
    """Of one core."""
    returned_share: float
    """Echoed frames of those sent."""
    late_share: float | None
    """Playout frames over 5 ms late, by the server's own count; None when it has none."""
    load_late_share: float
    """Packets that the load generator itself sent over 5 ms late."""
    resident_kib: int

    @property
    def overloaded(self) -> bool:
        return (
            (self.late_share or 0.0) > LATE_SHARE_LIMIT
            or self.cpu_share > CPU_SHARE_LIMIT
            or self.returned_share < RETURNED_SHARE_LIMIT
        )


async def ramp(
    server: Server,
    packets: Sequence[bytes],
    steps: Sequence[int],
    seconds: float,
    progress: Callable[[str], None],
) -> list[Step]:
    """Raises the number of calls step by step until the server is overloaded.

    seconds: measured at each step, after SETTLE_S in which new calls find their pace.
    """
    results: list[Step] = []
    async with _load(server, packets) as (peers, pacer, add):
        for calls in steps:
            progress(f"{calls} calls")
            await add(calls - len(peers))
            for _ in range(TRIES):
                await asyncio.sleep(SETTLE_S)
                step = await _measure(server, peers, pacer, seconds)
                if not step.overloaded:
                    break
            results.append(step)
            if step.overloaded:
                break
    return results


@contextlib.asynccontextmanager
async def _load(
    server: Server, packets: Sequence[bytes]
) -> AsyncIterator[tuple[list[Peer], Pacer, Callable[[int], Any]]]:
    """Peers that speak all the time, and a way to have more of them."""
    peers: list[Peer] = []
    pacer = Pacer(packets)
    gate = asyncio.Semaphore(CONNECT_AT_ONCE)

    async with aiohttp.ClientSession() as http:

        async def join() -> None:
            async with gate:
                peer = Peer(record=False, full_ice=server.full_ice)
                peers.append(peer)
                await peer.connect(http, server.base_url, "echo")
                pacer.add(peer)

        async def add(count: int) -> None:
            await asyncio.gather(*(join() for _ in range(count)))

        speaking = asyncio.create_task(pacer.run())
        try:
            yield peers, pacer, add
        finally:
            speaking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await speaking
            for peer in peers:
                peer.close()


async def _measure(server: Server, peers: Sequence[Peer], pacer: Pacer, seconds: float) -> Step:
    def reading() -> tuple[int, int, int, int, int]:
        return (
            time.monotonic_ns(),
            sum(cpu_ns(pid) for pid in server.media_pids),
            sum(peer.media.packets_received for peer in peers),
            pacer.sent,
            pacer.late,
        )

    counters = await asyncio.to_thread(server.counters)
    before = reading()
    await asyncio.sleep(seconds)
    after = reading()
    later = await asyncio.to_thread(server.counters)
    elapsed_ns, spent_ns, returned, sent, late = (b - a for a, b in zip(before, after, strict=True))
    played = later.get("playout_frames", 0) - counters.get("playout_frames", 0)
    played_late = later.get("playout_late", 0) - counters.get("playout_late", 0)
    return Step(
        calls=len(peers),
        cpu_us_per_frame_pair=spent_ns / 1e3 / max(1, returned),
        cpu_share=spent_ns / elapsed_ns,
        returned_share=returned / max(1, sent),
        late_share=played_late / played if played else None,
        load_late_share=late / max(1, sent),
        resident_kib=sum(resident_bytes(pid) for pid in server.media_pids) >> 10,
    )


def summarize(steps: Sequence[Step]) -> dict[str, Any]:
    """Calls per core two ways: from CPU per frame pair, and as far as the ramp went.

    The extrapolation uses the busiest step that was not overloaded: at few
    calls every packet pays for a wake-up of its own.
    """
    sound = [step for step in steps if not step.overloaded]
    best = sound[-1] if sound else None
    extrapolated = 1e6 / (best.cpu_us_per_frame_pair * FRAMES_PER_S) if best else None
    return {
        "cpu_us_per_frame_pair": best.cpu_us_per_frame_pair if best else None,
        "calls_per_core_extrapolated": extrapolated,
        "calls_carried": best.calls if best else 0,
        "overloaded_at": next((step.calls for step in steps if step.overloaded), None),
        "steps": [asdict(step) for step in steps],
    }
