"""The relay's loop: restart on the tables of a dead one, time limits, fairness,
losses before the relay, settings.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Any

import pytest

from dataplane.kernel import binding
from dataplane.shm.enums import Counter
from tests.kernel.rig import RTP, RelayRig, wait_until
from tests.kernel.stun_messages import check, mac_keys, ufrag_text
from tests.kernel.tables import TestTables

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
