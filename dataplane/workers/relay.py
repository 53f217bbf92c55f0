"""The relay worker: a thin shell around the kernel's loop (DESIGN sections 2, 4).

The packets of known flows never reach Python. What does is a STUN check from
an address that the flow table does not hold: its ufrag carried our MAC, so its
password can be derived here, and only if MESSAGE-INTEGRITY verifies is a flow
installed or moved (DESIGN law 1).
"""

from __future__ import annotations

import argparse
import signal
import socket
import time

from setproctitle import setproctitle

from dataplane.kernel import binding
from dataplane.log import flush, get_logger, setup
from dataplane.node import NodeState
from dataplane.proto import stun
from dataplane.proto.errors import BadPacket
from dataplane.proto.ufrag import ClusterKeys, ice_pwd
from dataplane.shm.enums import Counter, RegionKind, WorkerKind
from dataplane.shm.flows import FlowTable
from dataplane.shm.names import SegmentNames
from dataplane.shm.segment import Segment
from dataplane.shm.workers import WorkerTable

log = get_logger()

HEARTBEAT_NS = 500_000_000
# Bounds the time to SIGTERM and to the next heartbeat; an idle relay wakes up
# five times a second.
POLL_MS = 200
# Walking the table costs about a millisecond, so not at every heartbeat.
COUNT_FLOWS_NS = 5_000_000_000
# A client that has not even sent a consent check for so long is gone (RFC 7675).
FLOW_LIVES_NS = 30_000_000_000
# A burst toward a transceiver that is being restarted waits in its receive
# buffer; this one only has to hold what the loop sends between two polls.
HOP_SEND_BUFFER_BYTES = 4 << 20


class Relay:
    """One relay worker's Python side."""

    def __init__(self, node: NodeState, index: int, incarnation: int, udp_fds: list[int]) -> None:
        names = SegmentNames(node.instance)
        boot_id = bytes.fromhex(node.boot_id)
        self._keys = ClusterKeys.from_text(node.cluster_keys)
        workers = WorkerTable(
            Segment.attach(names.workers, RegionKind.WORKERS, boot_id, writable=True)
        )
        self._row = workers.open_row(WorkerKind.RELAY, index, incarnation)
        self._hop = hop_send_socket()
        self._flows = FlowTable(
            Segment.attach(names.flows(index), RegionKind.FLOWS, boot_id, writable=True)
        )
        self._loop = binding.Relay(
            udp_fds,
            self._hop.fileno(),
            self._flows,
            Segment.attach(names.sessions, RegionKind.SESSIONS, boot_id, writable=False),
            Segment.attach(names.routes, RegionKind.ROUTES, boot_id, writable=False),
            self._row,
            {key_id: self._keys.mac_key(key_id) for key_id in self._keys.key_ids},
            node.node_id,
            index,
            incarnation,
        )
        self._heartbeat_ns = 0
        self._counted_ns = 0
        self._live_flows = 0
        self._stopping = False

    def run(self) -> None:
        """Until SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self._stopping:
            for item in self._loop.poll(POLL_MS):
                self._handle_check(item)
            self._handle_timer(time.monotonic_ns())

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _handle_check(self, item: binding.SlowItem) -> None:
        """A STUN request whose ufrag is ours, from an address that is new."""
        try:
            request = stun.parse_binding_request(item.datagram)
            stun.verify_integrity(item.datagram, request, ice_pwd(item.ufrag, self._keys))
        except BadPacket:
            # What the transceiver would tell apart is one thing here: the
            # sender did not prove that it knows the password.
            self._loop.count(Counter.DROP_STUN_BAD_INTEGRITY)
            return
        self._loop.install_and_forward(item)

    def _handle_timer(self, now_ns: int) -> None:
        if now_ns - self._counted_ns >= COUNT_FLOWS_NS:
            self._counted_ns = now_ns
            self._live_flows = self._flows.count_live(now_ns - FLOW_LIVES_NS)
        if now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self._row.heartbeat(now_ns, self._live_flows)


def hop_send_socket() -> socket.socket:
    """Where the hop's datagrams leave from: never read, never blocking."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, HOP_SEND_BUFFER_BYTES)
    sock.bind(("127.0.0.1", 0))
    return sock


def main() -> None:
    """``python -m dataplane.workers.relay``: started by the supervisor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--incarnation", type=int, required=True)
    parser.add_argument("--udp-fds", required=True)
    arguments = parser.parse_args()
    node = NodeState.load(arguments.node)
    title = f"relay {arguments.index}"
    setproctitle(f"earshot {title}")
    setup(title, node.config.log_format, node.config.log_level)
    udp_fds = [int(fd) for fd in arguments.udp_fds.split(",")]
    relay = Relay(node, arguments.index, arguments.incarnation, udp_fds)
    log.info("relay.ready", udp_port=node.udp_port, incarnation=arguments.incarnation)
    relay.run()
    flush()


if __name__ == "__main__":
    main()
