"""aiortc as the client: another implementation's ICE agent, DTLS, SRTP, Opus and SCTP."""

from __future__ import annotations

import asyncio
import contextlib
import fractions
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import aioice.ice
import numpy as np
import pytest
from aiortc import RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame

from tests.interop.similarity import compare
from tests.support.client import until
from tests.support.node import Node
from tests.support.speech import RATE, Samples

FRAME = RATE // 50
HEARD_S = 6
HOSTS = ["127.0.0.1", "::1"]


class Speaker(MediaStreamTrack):
    """Says the samples over and over, 20 ms at a time on absolute deadlines."""

    kind = "audio"

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self._samples = samples
        self._position = 0
        self._start = 0.0

    async def recv(self) -> AudioFrame:
        self._start = self._start or time.monotonic()
        await asyncio.sleep(max(0.0, self._start + self._position / RATE - time.monotonic()))
        at = np.arange(self._position, self._position + FRAME) % len(self._samples)
        frame = AudioFrame.from_ndarray(self._samples[at][np.newaxis], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._position
        frame.time_base = fractions.Fraction(1, RATE)
        self._position += FRAME
        return frame


class Client:
    """One aiortc call: what it hears, and the messages of its data channel."""

    def __init__(self, speech: Samples) -> None:
        self.connection = RTCPeerConnection()
        self.connection.addTrack(Speaker(speech))
        self.channel: RTCDataChannel = self.connection.createDataChannel("oai-events")
        self.messages: list[str | bytes] = []
        self.channel.on("message", self.messages.append)
        self.heard: list[Samples] = []
        self._listening: asyncio.Task[None] | None = None
        self.connection.on("track", self._on_track)

    async def call(self, http_url: str) -> str:
        """Posts the offer and applies the answer; returns the call's URL."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                f"{http_url}/v1/realtime/calls?model=echo",
                data=self.connection.localDescription.sdp,
                headers={"Content-Type": "application/sdp"},
            ) as response,
        ):
            body = await response.text()
            assert response.status == 201, body
            location = response.headers["Location"]
        await self.connection.setRemoteDescription(RTCSessionDescription(body, "answer"))
        return f"{http_url}{location}"

    async def close(self) -> None:
        await self.connection.close()
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening

    @property
    def heard_samples(self) -> int:
        return sum(map(len, self.heard))

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._listening = asyncio.create_task(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                assert frame.sample_rate == RATE
                channels = len(frame.layout.channels)
                self.heard.append(frame.to_ndarray().reshape(-1, channels)[:, 0].copy())


@contextlib.asynccontextmanager
async def talking_client(node: Node, speech: Samples) -> AsyncIterator[Client]:
    client = Client(speech)
    try:
        await client.call(node.http_url)
        await until(
            lambda: client.connection.connectionState == "connected",
            "aiortc to be connected",
            timeout_s=20,
        )
        yield client
    finally:
        await client.close()


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """aioice leaves loopback out of its candidates; here it is all there is."""
    address: str = request.param
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: [address])
    return address


async def test_hears_its_own_voice(node: Node, speech: Samples, host: str) -> None:
    async with talking_client(node, speech) as client:
        await until(lambda: client.heard_samples >= (HEARD_S + 1) * RATE, "the echo", timeout_s=30)
        # The first second may hold silence from before the echo began.
        heard = np.concatenate(client.heard)[RATE : (HEARD_S + 1) * RATE]
    likeness = compare(speech, heard)
    # Starved on a busy machine, the echo shifts; other speech has below 0.4 and 0.15.
    assert likeness.envelope > 0.55, likeness
    assert likeness.waveform > 0.6, likeness


async def test_its_data_channel_echoes(node: Node, speech: Samples, host: str) -> None:
    events = [{"type": "greeting", "text": "Grüße, 你好"}, {"type": "numbers", "n": [1, 2.5, None]}]
    async with talking_client(node, speech) as client:
        await until(lambda: client.channel.readyState == "open", "the data channel", timeout_s=20)
        for event in events:
            client.channel.send(json.dumps(event))
        await until(lambda: len(echoed(client)) == len(events), "both events", timeout_s=20)
        assert echoed(client) == events


def echoed(client: Client) -> list[object]:
    """The messages that are ours again: the edge sends events of its own too."""
    received = [json.loads(message) for message in client.messages]
    return [event for event in received if event["type"] in ("greeting", "numbers")]
