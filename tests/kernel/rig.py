"""A relay with real sockets, in this process: clients on one side, the hop
sockets of some transceivers on the other, and the slow path as a worker has it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from dataplane.kernel import binding
from dataplane.kernel.binding import SlowItem
from dataplane.proto import stun
from dataplane.proto.address import Address
from dataplane.proto.errors import BadPacket
from dataplane.proto.hop import HopHeader, HopRecord, parse_hop
from dataplane.proto.ufrag import ice_pwd
from dataplane.shm.enums import Counter, RegionKind, SessionState, WorkerKind
from dataplane.shm.segment import Segment
from dataplane.shm.sessions import Ident
from tests.kernel.stun_messages import KEYS, check, mac_keys, ufrag_text
from tests.kernel.tables import TestTables, config

NODE_ID = 1
RTP = b"\x80\x6f" + b"r" * 100
DTLS = b"\x16\xfe\xfd" + b"d" * 60
LOOPBACK4 = Address.from_text("127.0.0.1", 0).ip
LOOPBACK6 = Address.from_text("::1", 0).ip
RELAY_DROPS = [c for c in Counter if Counter.DROP_EMPTY <= c <= Counter.DROP_HOP_SEND]
DEADLINE_S = 10.0


def public_socket(family: socket.AddressFamily) -> socket.socket:
    """As the supervisor makes them."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    sock.setsockopt(socket.SOL_SOCKET, 40, 1)  # SO_RXQ_OVFL
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    return sock


class RelayRig:
    """One relay, ``transceivers`` hop sockets, tables of 64 slots."""

    def __init__(
        self,
        tables: TestTables,
        transceivers: int = 2,
        flow_rows: int = 64,
        **options: Any,
    ) -> None:
        self.tables = tables
        self.options = options
        self.sessions = tables.sessions()
        self.routes = tables.routes()
        self.workers = tables.workers()
        self.flows = tables.flows(flow_rows)
        self.udp4 = public_socket(socket.AF_INET)
        self.udp6 = public_socket(socket.AF_INET6)
        self.hop_out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.hops = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(transceivers)]
        for worker, hop in enumerate(self.hops):
            hop.bind(("127.0.0.1", 0))
            hop.setblocking(False)
            self.route(NODE_ID, worker, hop)
        self.incarnation = 0
        self.clients: list[socket.socket] = []
        self.start()

    def route(self, node_id: int, worker: int, hop: socket.socket) -> None:
        self.routes.set(node_id, worker, *Address.from_text(*hop.getsockname())[:2])

    def start(self) -> None:
        """A new relay on the sockets and tables that are there. Tables are
        attached by name, as a worker does."""
        names, boot_id = self.tables.names, self.tables.boot_id
        self.incarnation += 1
        self.row = self.workers.open_row(WorkerKind.RELAY, 0, self.incarnation)
        self.relay = binding.Relay(
            [self.udp4.fileno(), self.udp6.fileno()],
            self.hop_out.fileno(),
            Segment.attach(names.flows(0), RegionKind.FLOWS, boot_id, writable=True),
            Segment.attach(names.sessions, RegionKind.SESSIONS, boot_id, writable=False),
            Segment.attach(names.routes, RegionKind.ROUTES, boot_id, writable=False),
            self.row,
            mac_keys(),
            NODE_ID,
            0,
            self.incarnation,
            **self.options,
        )

    def close(self) -> None:
        self.relay.close()
        for sock in [self.udp4, self.udp6, self.hop_out, *self.hops, *self.clients]:
            sock.close()

    # --- clients

    def client(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.connect((self.udp4 if family == socket.AF_INET else self.udp6).getsockname())
        self.clients.append(sock)
        return sock

    def offer(self, slot: int, generation: int = 1, worker: int = 0) -> str:
        """Publish a call's row as the control plane does; its ufrag."""
        ident = Ident(SessionState.OFFERED, worker, 0, generation)
        self.sessions.publish(slot, ident, config(generation))
        return ufrag_text(slot, generation, worker=worker)

    def connect(self, slot: int, worker: int = 0, generation: int = 1) -> socket.socket:
        """A client with a flow to a call in that slot."""
        sock = self.client()
        sock.send(check(self.offer(slot, generation, worker)))
        self.serve(1)
        self.records(worker)
        return sock

    # --- the worker's side

    def poll(self, timeout_ms: int = 0) -> list[SlowItem]:
        return self.relay.poll(timeout_ms)

    def handle(self, item: SlowItem) -> bool:
        """The slow path of dataplane/workers/relay.py."""
        try:
            request = stun.parse_binding_request(item.datagram)
            stun.verify_integrity(item.datagram, request, ice_pwd(item.ufrag, KEYS))
        except BadPacket:
            self.relay.count(Counter.DROP_STUN_BAD_INTEGRITY)
            return False
        return self.relay.install_and_forward(item)

    def serve(self, datagrams: int) -> None:
        """Run until that many more datagrams came to their end."""
        goal = self.counter(Counter.RX_DATAGRAMS) + datagrams

        def done() -> bool:
            for item in self.poll(5):
                self.handle(item)
            return self.counter(Counter.RX_DATAGRAMS) >= goal

        wait_until(done)

    def counter(self, counter: Counter) -> int:
        return int(self.row.counters[counter])

    def counters(self) -> dict[Counter, int]:
        """Those that are not zero."""
        values = {counter: self.counter(counter) for counter in Counter}
        return {counter: value for counter, value in values.items() if value}

    def delta(self, act: Callable[[], object]) -> dict[Counter, int]:
        """What ``act`` made the counters move by, bytes and batches aside."""
        before = {counter: self.counter(counter) for counter in Counter}
        act()
        self.assert_balanced()
        aside = (Counter.RX_BYTES, Counter.RX_BATCHES)
        moved = {c: self.counter(c) - n for c, n in before.items() if c not in aside}
        return {c: n for c, n in moved.items() if n}

    def assert_balanced(self) -> None:
        """Every datagram came to exactly one end."""
        drops = sum(self.counter(counter) for counter in RELAY_DROPS)
        assert self.counter(Counter.RX_DATAGRAMS) == self.counter(Counter.FORWARDED) + drops

    # --- the transceivers' side

    def hop_datagrams(self, worker: int = 0) -> list[tuple[HopHeader, list[HopRecord]]]:
        """All that wait in the transceiver's socket."""
        found = []
        while True:
            try:
                found.append(parse_hop(self.hops[worker].recv(65536)))
            except BlockingIOError:
                return found

    def records(self, worker: int = 0) -> list[HopRecord]:
        return [record for _, records in self.hop_datagrams(worker) for record in records]


def address_of(sock: socket.socket) -> Address:
    return Address.from_text(*sock.getsockname()[:2])


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, "nothing came of it in time"
