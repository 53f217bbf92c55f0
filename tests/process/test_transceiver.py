"""A transceiver in this process: what clients, backends and the table can do to its calls."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench.peer import Peer
from dataplane.proto.backend_frame import Event, FrameType, Ready, Stop, encode_frame
from dataplane.proto.rtcp import ReceiverReport, ReportBlock, encode_rtcp
from dataplane.proto.rtp import RtpPacket, encode_rtp
from dataplane.shm.enums import BackendState, CallState, EndReason, SessionState
from dataplane.shm.sessions import Ident
from tests.support.client import until, voice_frames
from tests.support.lone_transceiver import LoneTransceiver, lone_transceiver
from tests.support.recording_backend import RecordedCall, RecordingBackend, audio_frame


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rec.sock"


@pytest.fixture
async def rig(path: Path) -> AsyncIterator[LoneTransceiver]:
    async with lone_transceiver(path) as made:
        yield made


@contextlib.asynccontextmanager
async def peer_of(rig: LoneTransceiver, slot: int = 0, **config: Any) -> AsyncIterator[Peer]:
    """A connected client of the call in that slot."""
    peer = Peer(data_channel=bool(config.get("sctp_port")))
    try:
        rig.offer(peer, slot, **config)
        await peer.establish()
        await until(lambda: status_of(rig, slot)[1] == CallState.CONNECTED, "the edge to see it")
        yield peer
    finally:
        if peer.channel is not None:
            await peer.channel.close()
        peer.close()


def status_of(rig: LoneTransceiver, slot: int = 0) -> tuple[int, int]:
    status = rig.node.status.read(slot)
    assert status is not None
    return status.generation, status.state


def refreshed(rig: LoneTransceiver, slot: int = 0) -> None:
    """Let the figures be copied at the next chance."""
    rig.call(slot).status._published_ns = 0


# --- figures that a client chooses ---


async def test_wild_timestamps_do_not_end_the_call(rig: LoneTransceiver) -> None:
    payload = voice_frames(0.02)[0]
    async with peer_of(rig) as peer:
        assert peer.media.srtp is not None
        for n in range(20):
            packet = RtpPacket(111, False, n, 0x80000000 * (n % 2), peer.media.ssrc, payload)
            refreshed(rig)
            session = rig.call().session
            wanted = session.packets_received + 1
            peer.send_datagram(peer.media.srtp.protect_rtp(encode_rtp(packet)))
            async with asyncio.timeout(5):
                while rig.worker._calls and session.packets_received < wanted:
                    await asyncio.sleep(0.001)
            assert rig.worker._calls
        status = rig.node.status.read(0)
        assert status is not None
        assert status.jitter_us > 1_000_000_000


async def test_a_wild_report_does_not_end_the_call(rig: LoneTransceiver) -> None:
    async with peer_of(rig) as peer:
        assert peer.media.srtp is not None
        block = ReportBlock(0xED9E, 255, 0x7FFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 1, 0xFFFFFFFF)
        report = encode_rtcp([ReceiverReport(peer.media.ssrc, (block,))])
        refreshed(rig)
        peer.send_datagram(peer.media.srtp.protect_rtcp(report))
        await until(
            lambda: not rig.worker._calls or rig.call().session.reports.remote_lost, "the report"
        )
        refreshed(rig)
        await peer.check()
        assert rig.worker._calls
        status = rig.node.status.read(0)
        assert status is not None
        assert status.remote_jitter_us == 0xFFFFFFFF


async def test_a_record_from_the_future_does_not_end_the_call(rig: LoneTransceiver) -> None:
    async with peer_of(rig):
        rig.call().session.uplink_delay_ns = -5_000
        refreshed(rig)
        call = rig.call()
        call.status.refresh(call.session, 0, 1 << 60)


# --- the end ---


async def test_an_end_is_never_seen_without_its_reason(rig: LoneTransceiver) -> None:
    seen: list[tuple[int, int]] = []
    async with peer_of(rig) as peer:
        writer = rig.call().status._writer
        publish = writer.publish

        def watched() -> None:
            publish()
            status = rig.node.status.read(0)
            assert status is not None
            seen.append((status.state, status.end_reason))

        writer.publish = watched  # type: ignore[method-assign]
        assert peer.dtls is not None
        peer.dtls.close(0)
        peer._flush_dtls()
        await until(lambda: not rig.worker._calls, "the end")
    assert (CallState.ENDED, EndReason.CLIENT_CLOSED) in seen
    assert (CallState.ENDED, EndReason.NONE) not in seen


async def test_a_call_that_cannot_even_end_harms_no_other(rig: LoneTransceiver) -> None:
    """A bug in ending one call: the sweep goes on, the table is told, the slot gets free."""
    async with peer_of(rig, 0), peer_of(rig, 1) as other:

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        rig.call(0).session.end = broken  # type: ignore[assignment,method-assign]
        for slot in (0, 1):
            rig.node.sessions.set_state(slot, SessionState.CLOSING, EndReason.HANGUP, 1)
        rig.worker.sweep(1 << 60)
        assert not rig.worker._calls
        for slot in (0, 1):
            status = rig.node.status.read(slot)
            assert status is not None
            assert status.state == CallState.ENDED
        await until(lambda: other.media.remote.bye, "BYE to the other")


async def test_a_slot_given_away_while_its_call_still_ran(rig: LoneTransceiver) -> None:
    """A transceiver that stood still finds its call's row written anew."""
    async with peer_of(rig, 0, generation=5), peer_of(rig, 0, generation=6):
        assert [call.generation for call in rig.worker._calls.values()] == [6]
        await until(lambda: status_of(rig) == (6, CallState.CONNECTED), "the new call's status")
        rig.worker.sweep(1 << 60)
        assert list(rig.worker._calls) == [0]
        assert status_of(rig) == (6, CallState.CONNECTED)


async def test_a_row_that_is_another_workers_is_written_no_more(rig: LoneTransceiver) -> None:
    async with peer_of(rig, 0, generation=5):
        writer = rig.node.status.writer(0)
        writer.fields.generation = 6
        writer.fields.state = CallState.ICE
        snapshot = rig.node.sessions.read(0)
        assert snapshot is not None
        config = dataclasses.replace(snapshot[1], generation=6)
        rig.node.sessions.publish(0, Ident(SessionState.OFFERED, 1, 0, 6), config)
        writer.publish()
        rig.worker.sweep(1 << 60)
        assert not rig.worker._calls
        assert status_of(rig) == (6, CallState.ICE)


# --- options ---


async def test_options_nested_deeply_reach_the_backend_as_they_came(
    rig: LoneTransceiver, path: Path
) -> None:
    options = b'{"big":123456789012345678901234567890,"a":' + b"[" * 400 + b"]" * 400 + b"}"
    async with SlowToAnswer().listen(path) as backend, peer_of(rig, options=options):
        await until(lambda: backend.calls, "START")
        assert options in backend.calls[0].frames[0][2]


# --- the backend ---


async def test_the_page_hears_of_a_backend_that_was_never_there(rig: LoneTransceiver) -> None:
    async with peer_of(rig, sctp_port=5000, sctp_max_message_bytes=262_144) as peer:
        assert peer.channel is not None
        channel = peer.channel
        await until(lambda: channel.messages, "an event")
        event = json.loads(channel.messages[0])
        assert event["type"] == "earshot.backend.unavailable"


async def test_events_said_before_the_client_is_connected_wait(
    rig: LoneTransceiver, path: Path
) -> None:
    peer = Peer(data_channel=True)
    async with RecordingBackend().listen(path) as backend:
        rig.offer(peer, sctp_port=5000, sctp_max_message_bytes=262_144)
        assert (await peer.check()).ok
        await until(lambda: backend.calls, "START")
        await until(lambda: rig.call().link.state is BackendState.READY, "READY")
        backend.calls[0].send(Event(b'{"type":"early"}').encode())
        await asyncio.sleep(0.05)
        await peer.establish()
        assert peer.channel is not None
        channel = peer.channel
        await until(lambda: channel.messages, "the event")
        assert json.loads(channel.messages[0])["type"] == "early"
    await peer.channel.close()
    peer.close()


async def test_a_successor_hears_nothing_of_its_predecessors_audio(
    rig: LoneTransceiver, path: Path
) -> None:
    """Not even between START and its READY."""
    async with peer_of(rig):
        async with RecordingBackend().listen(path) as first:
            await until(lambda: first.calls, "START")
            first.calls[0].send(audio_frame(bytes(48_000 * 10)))
            await until(lambda: first.calls[0].of_type(FrameType.PLAYED), "PLAYED")
        async with SlowToAnswer().listen(path) as second:
            await until(lambda: second.calls, "a second START")
            await asyncio.sleep(0.5)
            assert [kind for _, kind, _ in second.calls[0].frames] == [FrameType.START]


class SlowToAnswer(RecordingBackend):
    """Says nothing to START."""

    def _take(self, call: RecordedCall, kind: int, payload: bytes, now_ns: int) -> None:
        if kind == FrameType.START:
            self.calls.append(call)
        if kind != FrameType.AUDIO:
            call.frames.append((now_ns, kind, payload))


async def test_a_backend_may_refuse_a_call_before_ready(rig: LoneTransceiver, path: Path) -> None:
    async with SlowToAnswer().listen(path) as backend, peer_of(rig):
        await until(lambda: backend.calls, "START")
        backend.calls[0].send(Stop("no such customer").encode())
        await until(lambda: not rig.worker._calls, "the end")
        status = rig.node.status.read(0)
        assert status is not None
        assert status.end_reason == EndReason.BACKEND_STOPPED
        assert status.detail == "no such customer"


async def test_ready_twice_begins_anew(rig: LoneTransceiver, path: Path) -> None:
    async with RecordingBackend().listen(path) as backend, peer_of(rig) as peer:
        await until(lambda: backend.calls, "START")
        backend.calls[0].send(Ready(8000, 8000).encode())
        await peer.play(voice_frames(0.1))
        await until(lambda: len(backend.calls[0].pcm) >= 5 * 320, "audio")
        assert rig.worker._calls


async def test_clear_before_the_client_is_connected(rig: LoneTransceiver, path: Path) -> None:
    peer = Peer()
    async with RecordingBackend().listen(path) as backend:
        rig.offer(peer)
        assert (await peer.check()).ok
        await until(lambda: backend.calls, "START")
        call = backend.calls[0]
        call.send(audio_frame(bytes(96_000)))
        call.send(encode_frame(FrameType.CLEAR, struct.pack("!I", 9)))
        call.send(audio_frame(bytes(9600)))
        await peer.establish()
        await until(lambda: call.of_type(FrameType.CLEARED), "CLEARED")
        assert call.of_type(FrameType.CLEARED)[0][1] == struct.pack("!IQ", 0, 0)
    peer.close()


async def test_an_event_that_is_no_json_costs_that_event_alone(
    rig: LoneTransceiver, path: Path
) -> None:
    async with RecordingBackend().listen(path) as backend, peer_of(rig):
        await until(lambda: backend.calls, "START")
        call = backend.calls[0]
        call.send(encode_frame(FrameType.EVENT, b'{"level": NaN}'))
        await until(lambda: call.of_type(FrameType.EVENT), "the refusal")
        error = json.loads(call.of_type(FrameType.EVENT)[0][1])["error"]
        assert error["type"] == "invalid_event"
        assert len(backend.calls) == 1
        assert rig.worker._calls
