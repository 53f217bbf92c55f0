"""bench.peer for tests: a connected client in one line, and the oracles beside it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import aiohttp

from bench.media import ReceivedPacket
from bench.peer import Peer
from bench.speech import encode_voice, synthetic_voice
from dataplane.proto.opus import OpusDecoder, find_libopus

__all__ = ["Peer", "connected_peer", "decode", "encode_voice", "until", "voice_frames"]


@contextlib.asynccontextmanager
async def connected_peer(
    base_url: str, backend: str, *, host: str = "127.0.0.1", options: str | None = None
) -> AsyncIterator[Peer]:
    """A peer whose call is established; it leaves with close_notify."""
    async with aiohttp.ClientSession() as http:
        peer = Peer(host=host)
        try:
            await peer.connect(http, base_url, backend, options=options)
            yield peer
        finally:
            peer.close()


def voice_frames(seconds: float) -> list[bytes]:
    """Opus packets of 20 ms of a voice-like signal, the same at every run."""
    return encode_voice(synthetic_voice(seconds))


def decode(payloads: Iterable[bytes], rate: int) -> bytes:
    """What libopus makes of the packets in a row: the oracle of bit-exactness."""
    decoder = OpusDecoder(rate, find_libopus())
    return b"".join(decoder.decode(payload) for payload in payloads)


def payloads(received: Sequence[ReceivedPacket]) -> list[bytes]:
    """In the order of their RTP timestamps, as a player would take them."""
    return [packet.payload for packet in sorted(received, key=lambda packet: packet.rtp_ts)]


async def until(
    condition: Callable[[], Any], what: str, *, timeout_s: float = 10.0, every_s: float = 0.01
) -> None:
    """Polls until the condition is true. AssertionError that names what did not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(every_s)
