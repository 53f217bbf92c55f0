"""Bad datagrams by the million at the public port, in the middle of a call.

Nothing else may happen than counting: the call's audio stays bit-exact, every
datagram is accounted for exactly once, no process exits and none grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.binding_check import encode_check
from bench.cpu import resident_bytes
from bench.media import FRAME_NS
from bench.peer import Peer
from dataplane.proto.backend_frame import FrameType
from dataplane.shm.enums import WorkerKind
from dataplane.workers.segments import open_worker_table
from tests.support.bad_datagrams import bad_datagrams
from tests.support.client import call_row, connected_peer, decode, until, voice_frames
from tests.support.node import Node, running_node
from tests.support.recording_backend import RecordingBackend

RATE_IN = 16000
SEED = 20261122
STRANGERS = 8
BURST = 200
REPLAY_EVERY = 20
# Less than any queue on the way holds, so that nothing is lost for want of room.
MOST_UNDERWAY = 2000
# Pools, caches and the last garbage collection; a leak of 100 bytes per datagram is 10 MB.
MAY_GROW_BYTES = 6 << 20


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(1_000_000, marks=pytest.mark.timeout(600)),
        pytest.param(10_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
async def test_bad_datagrams_are_counted_and_nothing_else_happens(
    tmp_path: Path, count: int
) -> None:
    socket_path = tmp_path / "rec.sock"
    with running_node(relays=2, transceivers=2, backends={"rec": socket_path}) as node:
        async with (
            RecordingBackend(RATE_IN).listen(socket_path) as backend,
            connected_peer(node.http_url, "rec") as peer,
        ):
            await until(lambda: backend.calls, "START")
            await until(lambda: call_row(node, peer)["state"] == "connected", "the edge's keys")
            with Counters(node) as counters, Flood(peer, counters) as flood:
                call = asyncio.create_task(keep_talking(peer, flood))
                pids = node.pids
                await flood.send(count // 5)  # so that pools have their size
                before = resident(node)
                await flood.send(count - count // 5)
                await flood.settle()
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
                await flood.settle()
                assert flood.sent == count
                assert node.pids == pids
                grown = {name: now - before[name] for name, now in resident(node).items()}
                assert max(grown.values()) <= MAY_GROW_BYTES, grown
                await assert_all_heard(backend, peer)
                assert_every_datagram_counted(counters, flood)
            assert call_row(node, peer)["state"] == "connected"
            assert len(backend.calls) == 1
            assert (await peer.check()).ok


async def keep_talking(peer: Peer, flood: Flood) -> None:
    """Says the voice over and over until cancelled, and lets the flood overhear it."""
    frames = voice_frames(4.0)
    start = time.monotonic_ns()
    for number in itertools.count():
        await asyncio.sleep(max(0, start + number * FRAME_NS - time.monotonic_ns()) / 1e9)
        flood.overheard = peer.send_audio(frames[number % len(frames)])


async def assert_all_heard(backend: RecordingBackend, peer: Peer) -> None:
    frames = voice_frames(4.0)
    said = [frames[n % len(frames)] for n in range(peer.media.sender.packets)]
    expected = decode(said, RATE_IN)
    call = backend.calls[0]
    await until(lambda: len(call.pcm) >= len(expected), "all audio")
    assert bytes(call.pcm) == expected
    assert call.of_type(FrameType.CONCEALED) == []


def resident(node: Node) -> dict[str, int]:
    return {name: resident_bytes(pid) for name, pid in node.pids.items()}


class Counters:
    """The node's counters straight from shared memory, summed by kind of worker."""

    def __init__(self, node: Node) -> None:
        self._table = open_worker_table(node.state)

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, *_: object) -> None:
        self._table.segment.close()  # type: ignore[attr-defined]

    def of(self, kind: WorkerKind) -> dict[str, int]:
        totals: dict[str, int] = {}
        for info in self._table.all():
            if info.kind is kind:
                for name, value in info.counters.items():
                    totals[name] = totals.get(name, 0) + value
        return totals


def drops(counters: dict[str, int]) -> int:
    return sum(value for name, value in counters.items() if name.startswith("drop_"))


class Flood:
    """Sends bad datagrams from strangers' sockets and from the call's own address, no faster
    than the node takes them."""

    def __init__(self, peer: Peer, counters: Counters) -> None:
        self.sent = 0
        self.overheard = b""
        """A protected packet of the call, to be replayed."""
        self._peer = peer
        self._counters = counters
        self._sockets: list[socket.socket] = []
        self._datagrams: Iterator[bytes] = bad_datagrams(SEED, templates(peer))

    def __enter__(self) -> Flood:
        assert self._peer.remote is not None
        for _ in range(STRANGERS):
            stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            stranger.connect(self._peer.remote)
            self._sockets.append(stranger)
        return self

    def __exit__(self, *_: object) -> None:
        for stranger in self._sockets:
            stranger.close()

    @property
    def to_the_port(self) -> int:
        """Everything that was sent to the public port, the call's own datagrams included."""
        return self.sent + self._peer.counters.sent_datagrams

    async def send(self, count: int) -> None:
        # Every third comes from the call's own address, where less is dropped at the door.
        senders = [self._peer.sock, *self._sockets[::2], self._peer.sock, *self._sockets[1::2]]
        turn = itertools.cycle(senders)
        for number, datagram in enumerate(itertools.islice(self._datagrams, count)):
            sender = next(turn)
            # Only behind the original: a replay that overtook it, on another relay's shorter
            # queue, would be the packet, and those before it would come too late.
            if sender is self._peer.sock and number % REPLAY_EVERY == 0:
                datagram = self.overheard
            sender.send(datagram)
            self.sent += 1
            if number % BURST == 0:
                await asyncio.sleep(0)
                while self.underway() > MOST_UNDERWAY:
                    await asyncio.sleep(0.002)

    def underway(self) -> int:
        """Datagrams sent and not yet at their end: in a relay's queue or a transceiver's."""
        relay = self._counters.of(WorkerKind.RELAY)
        transceiver = self._counters.of(WorkerKind.TRANSCEIVER)
        before_relay = self.to_the_port - relay["rx_datagrams"] - relay["kernel_rx_overflow"]
        at_hop = relay["forwarded"] - transceiver["hop_rx_records"]
        return before_relay + at_hop

    async def settle(self) -> None:
        await until(lambda: self.underway() == 0, "every datagram to be taken", timeout_s=30)
        await until(
            lambda: ended_records(self._counters) == hop_records(self._counters),
            "every record to be handled",
            timeout_s=30,
        )


def templates(peer: Peer) -> list[bytes]:
    """Real datagrams of the call that were never sent, and two that nobody's keys made."""
    assert peer.answer is not None
    username = f"{peer.answer.ufrag}:{peer.ufrag}"
    check = without_fingerprint(
        encode_check(username, peer.answer.pwd, tie_breaker=peer.tie_breaker)
    )
    forged = encode_check(username, "x" * 24, tie_breaker=1)
    foreign = encode_check(f"{'A' * 24}:{peer.ufrag}", peer.answer.pwd, tie_breaker=1)
    handshake = b"\x16\xfe\xfd" + bytes(8) + b"\x00\x50" + secrets.token_bytes(80)
    application = b"\x17\xfe\xfd\x00\x01" + bytes(6) + b"\x00\x40" + secrets.token_bytes(64)
    rtp = b"\x80\x6f" + (7).to_bytes(2, "big") + bytes(4) + peer.media.ssrc.to_bytes(4, "big")
    rtcp = b"\x80\xc8\x00\x06" + peer.media.ssrc.to_bytes(4, "big")
    return [
        check,
        forged,
        foreign,
        handshake,
        application,
        rtp + secrets.token_bytes(90),
        rtcp + secrets.token_bytes(60),
    ]


def without_fingerprint(check: bytes) -> bytes:
    """FINGERPRINT stands behind MESSAGE-INTEGRITY, which does not cover it: a check damaged
    there alone would still be authentic, and make a stranger the client."""
    body = check[20:-8]
    return check[:2] + len(body).to_bytes(2, "big") + check[4:20] + body


def hop_records(counters: Counters) -> int:
    return counters.of(WorkerKind.TRANSCEIVER)["hop_rx_records"]


def ended_records(counters: Counters) -> int:
    """Records that were handled or dropped; drop_hop_malformed counts hop datagrams."""
    transceiver = counters.of(WorkerKind.TRANSCEIVER)
    return transceiver["records_handled"] + drops(transceiver) - transceiver["drop_hop_malformed"]


def assert_every_datagram_counted(counters: Counters, flood: Flood) -> None:
    relay = counters.of(WorkerKind.RELAY)
    transceiver = counters.of(WorkerKind.TRANSCEIVER)
    assert relay["kernel_rx_overflow"] == 0
    assert relay["rx_datagrams"] == flood.to_the_port
    assert relay["rx_datagrams"] == relay["forwarded"] + drops(relay)
    assert transceiver["hop_records_lost"] == transceiver["kernel_hop_overflow"] == 0
    assert transceiver["drop_hop_malformed"] == 0
    assert transceiver["hop_rx_records"] == relay["forwarded"]
    assert ended_records(counters) == transceiver["hop_rx_records"]
    # The flood met every door: if one of these is 0 the test has lost its teeth.
    for name in RELAY_DROPS:
        assert relay[name] > 0, name
    for name in TRANSCEIVER_DROPS:
        assert transceiver[name] > 0, name


RELAY_DROPS = (
    "drop_empty",
    "drop_oversize",
    "drop_demux",
    "drop_stun_malformed",
    "drop_stun_not_request",
    "drop_stun_no_username",
    "drop_stun_foreign_ufrag",
    "drop_stun_bad_integrity",
    "drop_unknown_flow",
)
TRANSCEIVER_DROPS = (
    "drop_session_stun_bad_integrity",
    "drop_dtls_malformed",
    "drop_srtp_auth",
    "drop_srtp_replay",
)
