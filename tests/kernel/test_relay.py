"""The relay with real sockets: known flows, new flows, routes and sending, each
datagram counted exactly once.
"""

from __future__ import annotations

import socket
import threading
import time

import pytest

from dataplane.kernel.binding import SlowItem
from dataplane.proto.address import Address
from dataplane.proto.hop import HOP_DTLS, HOP_NEW_FLOW, HOP_RTP, HOP_STUN
from dataplane.shm.enums import Counter
from tests.kernel.rig import (
    DTLS,
    LOOPBACK4,
    LOOPBACK6,
    NODE_ID,
    RTP,
    RelayRig,
    address_of,
    wait_until,
)
from tests.kernel.stun_messages import check, ufrag_text
from tests.kernel.tables import TestTables

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
