"""Whole calls through a real node: what the backend hears and what the client hears."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.peer import Peer
from bench.speech import synthetic_voice
from dataplane.proto.backend_frame import Clear, Cleared, End, FrameType, Played, encode_frame
from tests.interop.similarity import compare
from tests.support.client import (
    call_row,
    connected_peer,
    decode,
    encode_voice,
    payloads,
    until,
    voice_frames,
)
from tests.support.node import ECHO, Node, running_node
from tests.support.recording_backend import RecordingBackend, audio_frame
from tests.support.speech import RATE, SENTENCE, speak

HOSTS = ["127.0.0.1", "::1"]
RATE_OUT = 24000
FRAME_OUT = RATE_OUT // 50  # samples in 20 ms


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backend") / "rec.sock"


@pytest.fixture(scope="module")
def node(socket_path: Path) -> Iterator[Node]:
    with running_node(
        backends={"rec": socket_path},
        backend_commands={"echo": ECHO, "parrot": ECHO.replace("echo.py", "parrot.py")},
        advertise=HOSTS,
    ) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def samples(pcm: bytes) -> NDArray[np.float64]:
    return np.frombuffer(pcm, "<i2").astype(np.float64)


# --- uplink ---


@pytest.mark.parametrize("rate", [8000, 12000, 16000, 24000, 48000])
@pytest.mark.parametrize("host", HOSTS)
async def test_the_backend_hears_what_libopus_makes_of_the_packets(
    node: Node, socket_path: Path, host: str, rate: int
) -> None:
    frames = voice_frames(1.5)
    expected = decode(frames, rate)
    async with (
        RecordingBackend(rate_in=rate).listen(socket_path) as backend,
        connected_peer(node.http_url, "rec", host=host) as peer,
    ):
        await peer.play(frames)
        await until(
            lambda: backend.calls and len(backend.calls[0].pcm) >= len(expected), "all audio"
        )
        call = backend.calls[0]
        assert bytes(call.pcm) == expected
        assert call.of_type(FrameType.CONCEALED) == []
        assert len(backend.calls) == 1


async def test_start_carries_the_session_options(node: Node, socket_path: Path) -> None:
    async with (
        RecordingBackend().listen(socket_path) as backend,
        connected_peer(node.http_url, "rec", options='{"voice": "alba", "n": [1, 2]}') as peer,
    ):
        await until(lambda: backend.calls, "START")
        start = backend.calls[0].start
        assert start is not None
        assert start.options == {"voice": "alba", "n": [1, 2]}
        assert (start.session_id, start.backend) == (peer.call_id, "rec")
        assert start.client_address.startswith("127.0.0.1:")


async def test_both_sides_exchange_rtcp_reports(node: Node) -> None:
    async with connected_peer(node.http_url, "echo") as peer:
        await peer.play(voice_frames(1.0))
        remote = peer.media.remote
        peer.send_rtcp()
        await until(lambda: remote.sender_reports and remote.rtt_ns is not None, "a report on us")
        assert remote.cumulative_lost == 0
        assert remote.rtt_ns is not None
        assert 0 <= remote.rtt_ns < 1_000_000_000


# --- downlink ---


@pytest.mark.parametrize("host", HOSTS)
async def test_the_echo_is_what_was_said(node: Node, host: str) -> None:
    speech = speak(SENTENCE)
    frames = encode_voice(speech.tobytes())
    async with connected_peer(node.http_url, "echo", host=host) as peer:
        await peer.play(frames)
        await until(lambda: peer.media.packets_received >= len(frames), "the echo")
        received = sorted(peer.media.received, key=lambda packet: packet.rtp_ts)
    assert {(b.seq - a.seq) & 0xFFFF for a, b in pairwise(received)} == {1}
    likeness = compare(speech, np.frombuffer(decode(payloads(received), RATE), "<i2"))
    # On a busy machine the echo starves now and then, which shifts all that follows.
    assert likeness.envelope > 0.7, likeness
    assert likeness.waveform > 0.8, likeness


async def test_a_clear_stops_within_one_frame_and_tells_what_was_heard(
    node: Node, socket_path: Path
) -> None:
    """The backend hands over 5 s at once and clears after about one. The client decodes all
    it gets: the sound must end where CLEARED says, give or take 20 ms."""
    async with (
        RecordingBackend(rate_out=RATE_OUT).listen(socket_path) as backend,
        connected_peer(node.http_url, "rec") as peer,
    ):
        await peer.play(voice_frames(0.1))
        await until(lambda: backend.calls, "START")
        call = backend.calls[0]
        for second in buzz(5.0):
            call.send(audio_frame(second))
        await until(lambda: peer.media.packets_received >= 50, "a second of audio")
        received_at_clear = peer.media.packets_received
        call.send(Clear(1).encode())
        await until(lambda: call.of_type(FrameType.CLEARED), "CLEARED")
        cleared = Cleared.parse(call.of_type(FrameType.CLEARED)[0][1])
        # The next utterance shows that the old one is over.
        call.send(audio_frame(bytes(2 * FRAME_OUT * 10)))
        call.send(End().encode())
        await until(lambda: playing(call.of_type(FrameType.PLAYED), 1), "generation 1")
        heard = samples(decode(payloads(peer.media.received), RATE_OUT))
    audible = np.flatnonzero(np.abs(heard) > 500)
    duration = int(audible[-1] - audible[0]) + 1
    assert cleared.generation == 0
    assert abs(duration - cleared.samples) <= FRAME_OUT
    # Between our look at the count and the edge's reading of CLEAR a few may have been sent.
    assert cleared.samples <= (received_at_clear + 5) * FRAME_OUT


def buzz(seconds: float) -> list[bytes]:
    """A loud tone that is never silent for a millisecond, in pieces of a second."""
    t = np.arange(round(seconds * RATE_OUT)) / RATE_OUT
    tone = 9000 * np.sin(2 * np.pi * 437 * t) + 4000 * np.sin(2 * np.pi * 1310 * t)
    pcm = tone.astype("<i2").tobytes()
    return [pcm[at : at + 2 * RATE_OUT] for at in range(0, len(pcm), 2 * RATE_OUT)]


def playing(frames: list[tuple[int, bytes]], generation: int) -> bool:
    """A PLAYED says that something of that generation has been played."""
    played = [Played.parse(payload) for _, payload in frames]
    return any(one.generation == generation and one.samples > 0 for one in played)


# --- the life of a backend ---


async def test_a_call_is_answered_before_its_backend_listens(node: Node, socket_path: Path) -> None:
    frames = voice_frames(1.0)
    async with connected_peer(node.http_url, "rec") as peer:
        await until(lambda: backend_of(node, peer)[0] == "unavailable", "the state of the backend")
        assert str(socket_path) in backend_of(node, peer)[1]
        async with RecordingBackend(rate_in=16000).listen(socket_path) as backend:
            await until(lambda: backend_of(node, peer)[0] == "ready", "the backend to be ready")
            await peer.play(frames)
            expected = decode(frames, 16000)
            await until(lambda: len(backend.calls[0].pcm) >= len(expected), "all audio")
            assert bytes(backend.calls[0].pcm) == expected


async def test_a_backend_that_dies_is_found_again(node: Node, socket_path: Path) -> None:
    frames = voice_frames(1.0)
    async with connected_peer(node.http_url, "rec") as peer:
        async with RecordingBackend().listen(socket_path) as first:
            await until(lambda: first.calls, "START")
            await peer.play(frames)
        await until(
            lambda: backend_of(node, peer)[0] in ("lost", "unavailable"), "the loss to be seen"
        )
        async with RecordingBackend().listen(socket_path) as second:
            await until(lambda: second.calls, "a second START")
            await until(lambda: backend_of(node, peer)[0] == "ready", "the backend to be ready")
            assert second.calls[0].start == first.calls[0].start
            await peer.play(frames)
            expected = decode(frames, 16000)
            await until(lambda: len(second.calls[0].pcm) >= len(expected), "all audio")
            # It may begin with what waited for a backend; then all that was said since.
            assert len(second.calls[0].pcm) % 640 == 0
            assert call_row(node, peer)["state"] == "connected"


async def test_a_hang_up_ends_the_call_on_every_side(
    node: Node, socket_path: Path, http: aiohttp.ClientSession
) -> None:
    async with (
        RecordingBackend().listen(socket_path) as backend,
        connected_peer(node.http_url, "rec") as peer,
    ):
        await until(lambda: backend.calls, "START")
        assert await peer.hang_up(http) == 200
        await until(lambda: backend.calls[0].closed, "the backend's connection to end")
        assert backend.calls[0].of_type(FrameType.STOP)
        await until(lambda: peer.media.remote.bye, "BYE")
        assert peer.dtls is not None
        await until(lambda: peer.dtls and peer.dtls.state == "closed", "close_notify")
        await until(lambda: call_row(node, peer)["reason"] == "hangup", "the reason")
        assert (await peer.check()).error_code == 403


async def test_a_backend_may_end_the_call(node: Node, socket_path: Path) -> None:
    async with (
        RecordingBackend().listen(socket_path) as backend,
        connected_peer(node.http_url, "rec") as peer,
    ):
        await until(lambda: backend.calls, "START")
        # Our side has its keys before the edge has: a BYE needs both.
        await until(lambda: call_row(node, peer)["state"] == "connected", "the edge's keys")
        backend.calls[0].send(encode_frame(FrameType.STOP, b'{"reason":"done"}'))
        await until(lambda: peer.media.remote.bye, "BYE")
        await until(lambda: call_row(node, peer)["reason"] == "backend_stopped", "the reason")


def backend_of(node: Node, peer: Peer) -> tuple[str, str]:
    """(state, why in words) of the call's backend, as the admin API tells."""
    row: dict[str, Any] = call_row(node, peer)
    return row["backend_state"], row["detail"]


# --- parrot ---


async def test_parrot_stops_when_interrupted(node: Node) -> None:
    """The example through a whole node: it says back what was said, and when the person barges
    in it is silent within one frame and knows what was heard."""
    voice = encode_voice(synthetic_voice(1.9))  # without a pause: its end is heard as an end
    quiet = encode_voice(bytes(2 * RATE * 3))
    async with connected_peer(node.http_url, "parrot", data_channel=True) as peer:
        await peer.play([*voice, *quiet[:50]])
        await until(lambda: peer.media.packets_received >= 10, "the answer")
        talking = asyncio.create_task(peer.play([*quiet[:25], *voice[:50], *quiet]))
        await until(lambda: event_of(peer, "parrot.interrupted"), "the barge-in")
        interrupted = event_of(peer, "parrot.interrupted")
        heard = samples(decode(payloads(peer.media.received), RATE_OUT))
        talking.cancel()
    assert 0 < interrupted["heard_ms"] < interrupted["ms"]
    # Its answer is audible from the first millisecond to the end of the voice.
    audible_ms = int(np.flatnonzero(np.abs(heard) > 300)[-1]) * 1000 // RATE_OUT
    assert abs(audible_ms - interrupted["heard_ms"]) <= 20


def event_of(peer: Peer, kind: str) -> dict[str, Any]:
    """The data channel's first event of that type; empty before it came."""
    assert peer.channel is not None
    events = [json.loads(message) for message in peer.channel.messages]
    return next((event for event in events if event.get("type") == kind), {})
