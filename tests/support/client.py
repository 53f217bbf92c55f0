"""bench.peer for tests: a connected client in one line, and the oracles beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import aiohttp

from bench.media import ReceivedPacket
from bench.peer import Peer
from bench.speech import encode_voice, synthetic_voice
from dataplane.proto.opus import OpusDecoder, find_libopus
from tests.support.node import Node

__all__ = [
    "Peer",
    "call_row",
    "connected_peer",
    "decode",
    "encode_voice",
    "payloads",
    "until",
    "voice_frames",
]


@contextlib.asynccontextmanager
async def connected_peer(
    base_url: str,
    backend: str,
    *,
    host: str = "127.0.0.1",
    options: str | None = None,
    data_channel: bool = False,
) -> AsyncIterator[Peer]:
    """A peer whose call is established; it leaves with close_notify."""
    async with aiohttp.ClientSession() as http:
        peer = Peer(host=host, data_channel=data_channel)
        try:
            await peer.connect(http, base_url, backend, options=options)
            yield peer
        finally:
            if peer.channel is not None:
                await peer.channel.close()
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


def call_row(node: Node, peer: Peer) -> dict[str, Any]:
    """What the admin API says of the peer's call. HTTPError when it does not know it."""
    url = f"{node.http_url}/admin/v1/calls/{peer.call_id}"
    with urllib.request.urlopen(url, timeout=10) as response:
        row: dict[str, Any] = json.load(response)
    return row
