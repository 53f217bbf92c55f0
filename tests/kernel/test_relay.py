"""The relay loop with real sockets: each datagram ends where it should, counted
exactly once."""

from __future__ import annotations

import collections
import errno
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.kernel import binding
from dataplane.kernel.binding import SlowItem
from dataplane.proto.address import Address
from dataplane.proto.demux import Demux, classify
from dataplane.proto.hop import HOP_DTLS, HOP_NEW_FLOW, HOP_RTP, HOP_STUN
from dataplane.shm.enums import Counter, SessionState
from dataplane.shm.sessions import Ident
from tests.kernel.rig import NODE_ID, RelayRig, wait_until
from tests.kernel.stun_messages import check, mac_keys, message, ufrag_text
from tests.kernel.tables import TestTables

RTP = b"\x80\x6f" + b"r" * 100
DTLS = b"\x16\xfe\xfd" + b"d" * 60
LOOPBACK4 = Address.from_text("127.0.0.1", 0).ip
LOOPBACK6 = Address.from_text("::1", 0).ip


@pytest.fixture
def rig(tables: TestTables) -> Iterator[RelayRig]:
    made = RelayRig(tables)
    yield made
    made.close()
    made.assert_balanced()


def address_of(sock: socket.socket) -> Address:
    return Address.from_text(*sock.getsockname()[:2])


# --- the slow path


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_first_check_is_pythons(rig: RelayRig, family: socket.AddressFamily) -> None:
    ufrag = rig.offer(slot=5, generation=9, worker=1)
    client = rig.client(family)
    datagram = check(ufrag)
    client.send(datagram)
    items: list[SlowItem] = []
    wait_until(lambda: bool(items.extend(rig.poll(5)) or items))
    local = LOOPBACK4 if family == socket.AF_INET else LOOPBACK6
    index = 0 if family == socket.AF_INET else 1
    assert items == [
        SlowItem(datagram, tuple(address_of(client)), local, index, 5, 9, 1, NODE_ID, ufrag)
    ]
    assert list(rig.flows.items()) == []  # no state before proof
    rig.assert_balanced()  # the item in hand counts when it ends

    moved = rig.delta(lambda: rig.handle(items[0]))
    assert moved == {
        Counter.RX_DATAGRAMS: 1,
        Counter.FORWARDED: 1,
        Counter.HOP_TX_DATAGRAMS: 1,
        Counter.FLOWS_INSTALLED: 1,
    }
    [(header, [record])] = rig.hop_datagrams(1)
    assert (header.source, header.incarnation, header.record_index) == (0, 1, 0)
    assert 0 <= time.monotonic_ns() - header.t_recv_ns < 10**10
    assert record.flags == HOP_STUN | HOP_NEW_FLOW
    assert record.client == address_of(client)
    assert (record.local_ip, record.node_id) == (local, NODE_ID)
    assert (record.slot, record.generation, record.payload) == (5, 9, datagram)
    [flow] = rig.flows.items()
    assert (flow.client, flow.slot, flow.worker) == (tuple(address_of(client)), 5, 1)


def test_wrong_password_installs_nothing(rig: RelayRig) -> None:
    client = rig.client()
    client.send(check(rig.offer(slot=1), pwd="x" * 24))
    assert rig.delta(lambda: rig.serve(1)) == {
        Counter.RX_DATAGRAMS: 1,
        Counter.SLOW_PATH: 1,
        Counter.DROP_STUN_BAD_INTEGRITY: 1,
    }
    assert list(rig.flows.items()) == []
    assert rig.records() == []


def test_the_ring_is_bounded(rig: RelayRig) -> None:
    """A flood of checks with a ufrag somebody overheard."""
    datagram = check(rig.offer(slot=1), pwd="x" * 24)
    clients = [rig.client() for _ in range(50)]
    for client in clients:
        client.send(datagram)
    wait_until(lambda: rig.udp4.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b"")
    items = rig.poll(0) or rig.poll(1000)
    assert len(items) == 32
    for item in items:
        rig.handle(item)
    counted = rig.counters()
    assert counted[Counter.DROP_STUN_BAD_INTEGRITY] == 32
    assert counted[Counter.DROP_SLOW_PATH_FULL] == 18


def test_a_session_that_ended_while_python_looked(rig: RelayRig) -> None:
    client = rig.client()
    client.send(check(rig.offer(slot=1)))
    items: list[SlowItem] = []
    wait_until(lambda: bool(items.extend(rig.poll(5)) or items))
    rig.sessions.free(1)
    assert rig.delta(lambda: rig.handle(items[0])) == {
        Counter.RX_DATAGRAMS: 1,
        Counter.DROP_STUN_STALE_GENERATION: 1,
    }
    assert list(rig.flows.items()) == []


# --- the fast path


def test_known_flow_needs_no_python(rig: RelayRig) -> None:
    client = rig.connect(slot=2)
    again = check(ufrag_text(2))

    def act() -> None:
        for datagram in (RTP, DTLS, again):
            client.send(datagram)
        rig.serve(3)

    moved = rig.delta(act)
    assert moved.pop(Counter.HOP_TX_DATAGRAMS) <= 3
    assert moved == {Counter.RX_DATAGRAMS: 3, Counter.FORWARDED: 3}
    records = rig.records()
    assert [(r.flags, r.payload) for r in records] == [
        (HOP_RTP, RTP),
        (HOP_DTLS, DTLS),
        (HOP_STUN, again),
    ]
    assert {(r.client, r.local_ip, r.slot, r.generation) for r in records} == {
        (address_of(client), LOOPBACK4, 2, 1)
    }


def test_many_records_in_one_datagram(rig: RelayRig) -> None:
    clients = [rig.connect(slot, worker=slot % 2) for slot in range(8)]

    def act() -> None:
        for round_ in range(5):
            for client in clients:
                client.send(RTP + bytes([round_]))
        rig.serve(40)

    moved = rig.delta(act)
    assert moved == {
        Counter.RX_DATAGRAMS: 40,
        Counter.FORWARDED: 40,
        Counter.HOP_TX_DATAGRAMS: 2,
    }
    for worker in (0, 1):
        [(header, records)] = rig.hop_datagrams(worker)
        assert header.count == len(records) == 20
        assert header.record_index == 4  # after the four checks
        assert [r.payload[-1] for r in records] == sorted(r.payload[-1] for r in records)


def test_sizes_up_to_the_limit(rig: RelayRig) -> None:
    client = rig.connect(slot=1)
    sizes = [1, 2047, 2048]

    def act() -> None:
        for size in sizes:
            client.send(b"\x80" * size)
        client.send(b"\x80" * 2049)
        client.send(b"\x80" * 60000)
        client.send(b"")
        rig.serve(6)

    moved = rig.delta(act)
    assert moved[Counter.DROP_OVERSIZE] == 2
    assert moved[Counter.DROP_EMPTY] == 1
    assert moved[Counter.FORWARDED] == 3
    assert [len(record.payload) for record in rig.records()] == sizes


def test_a_full_hop_datagram_is_followed_by_another(tables: TestTables) -> None:
    rig = RelayRig(tables, hop_bytes=5000)
    client = rig.connect(slot=1)
    for _ in range(20):
        client.send(b"\x80" * 1000)
    rig.serve(20)
    datagrams = rig.hop_datagrams()
    assert [header.count for header, _ in datagrams] == [4] * 5
    assert [header.record_index for header, _ in datagrams] == [1, 5, 9, 13, 17]
    rig.close()


def test_waiting_for_company_loses_nothing(tables: TestTables) -> None:
    rig = RelayRig(tables, gather_us=1000)
    client = rig.connect(slot=1)
    payloads = [RTP + i.to_bytes(2, "big") for i in range(600)]

    def send() -> None:
        for payload in payloads:
            client.send(payload)
            time.sleep(0)

    thread = threading.Thread(target=send)
    thread.start()
    rig.serve(len(payloads))
    thread.join()
    assert [record.payload for record in rig.records()] == payloads
    rig.assert_balanced()
    rig.close()


# --- what is not forwarded

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


# --- routes and sending


def test_no_route(rig: RelayRig) -> None:
    client = rig.connect(slot=1)
    rig.routes.clear(NODE_ID, 0)
    client.send(RTP)
    assert rig.delta(lambda: rig.serve(1)) == {
        Counter.RX_DATAGRAMS: 1,
        Counter.DROP_NO_ROUTE: 1,
    }
    rig.route(NODE_ID, 0, rig.hops[1])  # comes back elsewhere
    client.send(RTP)
    rig.serve(1)
    assert [r.payload for r in rig.records(1)] == [RTP]


def test_install_without_a_route_keeps_the_flow(rig: RelayRig) -> None:
    client = rig.client()
    client.send(check(rig.offer(slot=1, worker=77)))
    assert rig.delta(lambda: rig.serve(1)) == {
        Counter.RX_DATAGRAMS: 1,
        Counter.SLOW_PATH: 1,
        Counter.FLOWS_INSTALLED: 1,
        Counter.DROP_NO_ROUTE: 1,
    }
    assert len(list(rig.flows.items())) == 1


def test_sessions_of_another_node_are_its_own_business(rig: RelayRig) -> None:
    """No row of ours speaks for them; the ufrag's MAC does."""
    rig.route(55, 3, rig.hops[1])
    client = rig.client()
    ufrag = ufrag_text(slot=0xFFFFFF, generation=5, node_id=55, worker=3)
    client.send(check(ufrag))
    rig.serve(1)
    client.send(RTP)
    rig.serve(1)
    records = rig.records(1)
    assert [(r.node_id, r.slot, r.generation) for r in records] == [(55, 0xFFFFFF, 5)] * 2


@pytest.mark.parametrize("lost_first", [True, False])
def test_a_send_that_fails_is_counted_per_record(rig: RelayRig, lost_first: bool) -> None:
    """ENETUNREACH or EACCES of the one transceiver; the other's records go on,
    and the lost ones leave a gap in its record index."""
    lost, kept = rig.connect(slot=1, worker=0), rig.connect(slot=2, worker=1)
    broadcast = Address.from_text("255.255.255.255", 9)
    rig.routes.set(NODE_ID, 0, broadcast.ip, broadcast.port)  # EACCES without SO_BROADCAST

    def act() -> None:
        for _ in range(3):
            for client in (lost, kept) if lost_first else (kept, lost):
                client.send(RTP)
        rig.serve(6)

    moved = rig.delta(act)
    moved.pop(Counter.HOP_TX_DATAGRAMS)
    assert moved == {
        Counter.RX_DATAGRAMS: 6,
        Counter.FORWARDED: 3,
        Counter.DROP_HOP_SEND: 3,
    }
    assert len(rig.records(1)) == 3
    rig.route(NODE_ID, 0, rig.hops[0])
    lost.send(RTP)
    rig.serve(1)
    [(header, _)] = rig.hop_datagrams(0)
    assert header.record_index == 1 + 3


# --- restart


def test_a_successor_goes_on_with_the_flows(rig: RelayRig) -> None:
    """SIGKILL is simulated by leaving the first relay as it stands: what is in
    the sockets and in shared memory is all that its successor gets."""
    clients = [rig.connect(slot) for slot in range(3)]
    before = rig.counters()
    killed = rig.relay
    for client in clients:
        client.send(RTP)
    odd = next(
        i
        for i in range(64)
        if (row := binding.flow_read(rig.flows.region, i)) is not None and row.slot == 1
    )
    rig.flows.region.row(odd).sequence += 1  # killed inside an install
    rig.start()
    rig.serve(3)
    [(header, records)] = rig.hop_datagrams()
    assert (header.incarnation, header.record_index) == (2, 0)
    assert [r.slot for r in records] == [0, 2]
    after = rig.counters()
    assert after[Counter.FORWARDED] == before[Counter.FORWARDED] + 2
    assert after[Counter.DROP_UNKNOWN_FLOW] == 1
    killed.close()


def test_items_held_at_death_unbalance_nothing(rig: RelayRig) -> None:
    client = rig.client()
    client.send(check(rig.offer(slot=1)))
    wait_until(lambda: bool(rig.poll(5)))
    rig.start()
    rig.assert_balanced()
    client.send(check(ufrag_text(1)))
    rig.serve(1)
    assert rig.counters()[Counter.SLOW_PATH] == 2


# --- the loop's manners


def test_poll_ends_in_time_under_load(rig: RelayRig) -> None:
    """Full queues never keep Python out: with more waiting than one poll of no
    time can take, it still comes back, and nothing is lost."""
    client = rig.connect(slot=1)
    for _ in range(500):
        client.send(RTP)
    assert rig.poll(0) == []
    seen = rig.counter(Counter.RX_DATAGRAMS)
    assert seen < 400
    rig.serve(1 + 500 - seen)
    assert len(rig.records()) == 500


def test_one_full_socket_does_not_starve_the_other(rig: RelayRig) -> None:
    full, other = rig.connect(slot=1), rig.client(socket.AF_INET6)
    for _ in range(200):
        full.send(RTP)
    rig.poll(0)
    assert rig.counter(Counter.RX_DATAGRAMS) < 200
    other.send(RTP)
    assert rig.delta(lambda: rig.poll(0))[Counter.DROP_UNKNOWN_FLOW] == 1
    rig.serve(201 + 1 - rig.counter(Counter.RX_DATAGRAMS))


def test_poll_frees_the_gil(rig: RelayRig) -> None:
    ended: list[float] = []

    def poll() -> None:
        rig.poll(10_000)
        ended.append(1)

    thread = threading.Thread(target=poll)
    thread.start()
    client = rig.client()
    client.send(check(rig.offer(slot=1)))  # another thread runs meanwhile
    thread.join(10)
    assert ended
    rig.relay.count(Counter.DROP_STUN_BAD_INTEGRITY)


def test_a_flood_of_slow_items_does_not_stop_the_others(rig: RelayRig) -> None:
    talking = rig.connect(slot=1)
    noise = check(rig.offer(slot=2), pwd="x" * 24)
    attackers = [rig.client() for _ in range(8)]
    for i in range(40):
        for attacker in attackers:
            attacker.send(noise)
        talking.send(RTP + bytes([i]))
    rig.serve(40 * 9)
    assert [r.payload[-1] for r in rig.records()] == list(range(40))
    rig.assert_balanced()


def test_losses_in_the_kernels_queue_are_counted_once(tables: TestTables) -> None:
    rig = RelayRig(tables)
    client = rig.connect(slot=1)
    rig.udp4.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(200):
        client.send(RTP)
    kept = 0

    def drained() -> bool:
        nonlocal kept
        rig.poll(20)
        kept = rig.counter(Counter.RX_DATAGRAMS) - 1
        lost = rig.counters().get(Counter.KERNEL_RX_OVERFLOW, 0)
        return kept + lost == 200 and lost > 0

    wait_until(drained)
    lost = rig.counter(Counter.KERNEL_RX_OVERFLOW)
    rig.start()  # a successor on the same socket counts none of them again
    for _ in range(3):
        rig.poll(60)
    assert rig.counter(Counter.KERNEL_RX_OVERFLOW) == lost
    rig.close()


def test_a_closed_socket_is_an_error(tables: TestTables) -> None:
    rig = RelayRig(tables)
    os.close(rig.udp4.detach())
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        rig.poll(10)
    assert caught.value.errno == errno.EBADF
    rig.udp4 = socket.socket()
    rig.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"hop_bytes": 2127},
        {"hop_bytes": 65508},
        {"gather_us": 1001},
        {"index": 64},
        {"udp_fds": []},
        {"udp_fds": [0] * 5},
        {"keys": {16: bytes(16)}},
        {"keys": {0: bytes(15)}},
        {"hop_fd": -1},
    ],
    ids=str,
)
def test_unusable_settings_are_refused(rig: RelayRig, wrong: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "udp_fds": [rig.udp4.fileno()],
        "hop_fd": rig.hop_out.fileno(),
        "flows": rig.flows,
        "sessions": rig.sessions,
        "routes": rig.routes,
        "worker_row": rig.row,
        "keys": mac_keys(),
        "node_id": 1,
        "index": 0,
        "incarnation": 1,
    }
    with pytest.raises((OSError, ValueError)):
        binding.Relay(**(values | wrong))


def test_pidfd_getfd() -> None:
    ours = os.pidfd_open(os.getpid())
    reader, writer = os.pipe()
    duplicate = binding.pidfd_getfd(ours, writer)
    os.write(duplicate, b"through the duplicate")
    assert os.read(reader, 64) == b"through the duplicate"
    assert not os.get_inheritable(duplicate)
    with pytest.raises(OSError, match="Bad file descriptor"):
        binding.pidfd_getfd(ours, 10**6)
    for fd in (ours, reader, writer, duplicate):
        os.close(fd)
