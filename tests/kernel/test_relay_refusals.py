"""What the relay does not forward: each reason has its counter, and nothing else
moves.
"""

from __future__ import annotations

import collections
import random

import pytest

from dataplane.kernel import binding
from dataplane.proto.demux import Demux, classify
from dataplane.shm.enums import Counter, SessionState
from dataplane.shm.sessions import Ident
from tests.kernel.rig import DTLS, RTP, RelayRig
from tests.kernel.stun_messages import check, mac_keys, message, ufrag_text
from tests.kernel.tables import TestTables

NAMED = ufrag_text(slot=1)
REFUSED: list[tuple[int, bytes, Counter]] = [
    (1, b"", Counter.DROP_EMPTY),
    (2, b"\x80" * 2049, Counter.DROP_OVERSIZE),
    (3, b"\x10" + bytes(50), Counter.DROP_DEMUX),  # ZRTP
    (4, b"\x40\x01\x00\x00", Counter.DROP_DEMUX),  # TURN channel
    (5, b"\xff" * 20, Counter.DROP_DEMUX),
    (6, b"\x00", Counter.DROP_STUN_MALFORMED),
    (7, check(NAMED)[:-1], Counter.DROP_STUN_MALFORMED),
    (8, message(kind=0x0101), Counter.DROP_STUN_NOT_REQUEST),
    (9, message(), Counter.DROP_STUN_NO_USERNAME),
    (10, check("evtj"), Counter.DROP_STUN_FOREIGN_UFRAG),
    (11, check(NAMED[:-1] + ("A" if NAMED[-1] != "A" else "B")), Counter.DROP_STUN_FOREIGN_UFRAG),
    (12, check(ufrag_text(slot=1, generation=2)), Counter.DROP_STUN_STALE_GENERATION),
    (13, check(ufrag_text(slot=2)), Counter.DROP_STUN_STALE_GENERATION),  # a free slot
    (14, check(ufrag_text(slot=64)), Counter.DROP_STUN_STALE_GENERATION),  # no such row
    (15, check(ufrag_text(slot=0xFFFFFF)), Counter.DROP_STUN_STALE_GENERATION),
    (16, check(ufrag_text(slot=3, generation=0)), Counter.DROP_STUN_STALE_GENERATION),
    (17, RTP, Counter.DROP_UNKNOWN_FLOW),
    (18, DTLS, Counter.DROP_UNKNOWN_FLOW),
]


@pytest.mark.parametrize(
    ("number", "datagram", "counter"), REFUSED, ids=lambda v: v if isinstance(v, int) else ""
)
def test_refused_from_an_unknown_address(
    rig: RelayRig, number: int, datagram: bytes, counter: Counter
) -> None:
    rig.offer(slot=1)
    client = rig.client()
    client.send(datagram)
    moved = rig.delta(lambda: rig.serve(1))
    assert moved == {Counter.RX_DATAGRAMS: 1, counter: 1}, number
    assert rig.records() == []
    assert list(rig.flows.items()) == []


STATES = [
    (1, SessionState.OFFERED, 1, 0, Counter.FORWARDED, Counter.FORWARDED),
    (2, SessionState.CLOSING, 1, 0, Counter.FORWARDED, Counter.FORWARDED),
    (3, SessionState.ENDED, 1, 0, Counter.FORWARDED, Counter.DROP_STALE_FLOW),
    (4, SessionState.FREE, 1, 0, Counter.DROP_STUN_STALE_GENERATION, Counter.DROP_STALE_FLOW),
    (5, SessionState.OFFERED, 2, 1, Counter.FORWARDED, Counter.FORWARDED),  # ICE restart
    (6, SessionState.OFFERED, 2, 0, Counter.DROP_STUN_STALE_GENERATION, Counter.DROP_STALE_FLOW),
]


@pytest.mark.parametrize(
    ("number", "state", "generation", "previous", "stun_end", "rtp_end"),
    STATES,
    ids=lambda v: "" if isinstance(v, Counter) else str(v),
)
def test_a_known_flow_by_its_sessions_state(
    rig: RelayRig,
    number: int,
    state: SessionState,
    generation: int,
    previous: int,
    stun_end: Counter,
    rtp_end: Counter,
) -> None:
    client = rig.connect(slot=1)
    words = Ident(state, 0, previous, generation).to_word()
    rig.sessions.region.row(1).ident = words
    for datagram, end in ((check(NAMED), stun_end), (RTP, rtp_end), (DTLS, rtp_end)):
        client.send(datagram)
        moved = rig.delta(lambda: rig.serve(1))
        moved.pop(Counter.HOP_TX_DATAGRAMS, None)
        assert moved == {Counter.RX_DATAGRAMS: 1, end: 1}, number


def test_a_check_for_another_session_moves_the_flow_only_when_proven(rig: RelayRig) -> None:
    client = rig.connect(slot=1, worker=0)
    other = rig.offer(slot=2, worker=1)

    client.send(check(other, pwd="x" * 24))
    rig.serve(1)
    client.send(RTP)
    rig.serve(1)
    assert [r.slot for r in rig.records(0)] == [1]

    client.send(check(other))
    rig.serve(1)
    client.send(RTP)
    rig.serve(1)
    assert [r.slot for r in rig.records(1)] == [2, 2]
    assert rig.records(0) == []
    assert len(list(rig.flows.items())) == 1


def test_eviction_is_counted_and_heals(tables: TestTables) -> None:
    rig = RelayRig(tables, flow_rows=8)
    clients = [rig.connect(slot) for slot in range(9)]
    assert rig.counters()[Counter.FLOWS_EVICTED] == 1
    clients[0].send(RTP)
    assert rig.delta(lambda: rig.serve(1)) == {
        Counter.RX_DATAGRAMS: 1,
        Counter.DROP_UNKNOWN_FLOW: 1,
    }
    clients[0].send(check(ufrag_text(0)))
    clients[0].send(RTP)
    rig.serve(2)
    rig.serve(0)
    assert [r.payload for r in rig.records()][-1:] != []
    rig.assert_balanced()
    rig.close()


def mutated(choose: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with some bytes changed, its end cut off or grown, or plain noise."""
    data = bytearray(choose.choice(seeds))
    for _ in range(choose.randrange(4)):
        if data:
            data[choose.randrange(len(data))] = choose.choice([0, 1, 20, 128, 255, 64])
    match choose.randrange(4):
        case 0:
            del data[choose.randrange(len(data) + 1) :]
        case 1:
            data += choose.randbytes(choose.choice([1, 4, 100, 2100]))
        case 2:
            data = bytearray(choose.randbytes(choose.randrange(200)))
    return bytes(data)


STUN_ENDS = [
    Counter.FORWARDED,
    Counter.DROP_STUN_MALFORMED,
    Counter.DROP_STUN_NOT_REQUEST,
    Counter.DROP_STUN_NO_USERNAME,
    Counter.DROP_STUN_FOREIGN_UFRAG,
]


def expected_end(datagram: bytes, known: bool) -> Counter:
    """The verdict in Python, for a flow to slot 1 or an unknown address."""
    if not datagram:
        return Counter.DROP_EMPTY
    if len(datagram) > 2048:
        return Counter.DROP_OVERSIZE
    match classify(datagram):
        case Demux.NONE:
            return Counter.DROP_DEMUX
        case Demux.STUN:
            verdict, _ = binding.stun_peek(datagram, binding.KeyRing(mac_keys()))
            if STUN_ENDS[verdict] is Counter.FORWARDED and not known:
                return Counter.DROP_STUN_BAD_INTEGRITY
            return STUN_ENDS[verdict]
    return Counter.FORWARDED if known else Counter.DROP_UNKNOWN_FLOW


def test_bad_datagrams_end_as_the_verdict_in_python_says(rig: RelayRig) -> None:
    """Mutated, cut and random ones, between a call's own, which loses nothing."""
    choose = random.Random(20261122)
    known, unknown = rig.connect(slot=1), rig.client()
    forged = check(ufrag_text(slot=1), pwd="x" * 24)
    expected: collections.Counter[Counter] = collections.Counter()

    def act() -> None:
        for _ in range(100):
            for client in (known, unknown):
                for _ in range(10):
                    datagram = mutated(choose, [forged, RTP, DTLS, message()])
                    client.send(datagram)
                    expected[expected_end(datagram, client is known)] += 1
            rig.serve(20)

    moved = rig.delta(act)
    assert moved.pop(Counter.SLOW_PATH) == expected[Counter.DROP_STUN_BAD_INTEGRITY] > 0
    assert moved.pop(Counter.RX_DATAGRAMS) == 2000
    assert len(rig.records()) == expected[Counter.FORWARDED]
    moved.pop(Counter.HOP_TX_DATAGRAMS)
    assert moved == dict(expected)
    assert len(list(rig.flows.items())) == 1
