"""From POST to the first audio heard: what a caller waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from bench.node import Server
from bench.peer import Peer
from bench.rounds import percentile

FIRST_AUDIO_TIMEOUT_S = 10.0
STEPS = ("answer", "stun", "dtls", "first_audio")


async def set_up_once(
    http: aiohttp.ClientSession, server: Server, packets: Sequence[bytes]
) -> dict[str, float]:
    """One call: POST, answer, STUN, DTLS, speak until the echo's first packet; ms of each step."""
    peer = Peer(record=False, full_ice=server.full_ice)
    try:
        await peer.connect(http, server.base_url, "echo")
        speaking = asyncio.create_task(peer.play(packets))
        try:
            async with asyncio.timeout(FIRST_AUDIO_TIMEOUT_S):
                await peer.heard()
        finally:
            speaking.cancel()
        return peer.timeline.milliseconds()
    finally:
        peer.close()


async def set_ups(
    server: Server,
    packets: Sequence[bytes],
    count: int,
    progress: Callable[[str], None],
) -> list[dict[str, float]]:
    """One after the other, so that each has the machine to itself; the first is dropped."""
    results = []
    async with aiohttp.ClientSession() as http:
        for number in range(count + 1):
            progress(f"set-up {number}/{count}")
            results.append(await set_up_once(http, server, packets))
    return results[1:]


def summarize(set_ups: Sequence[dict[str, float]]) -> dict[str, Any]:
    """p50 and p99 of each step since the POST began, ms."""
    return {
        "count": len(set_ups),
        **{
            f"{step}_ms": {
                "p50": percentile([one[step] for one in set_ups], 50),
                "p99": percentile([one[step] for one in set_ups], 99),
            }
            for step in STEPS
        },
        "set_ups": list(set_ups),
    }
