"""A node's shared memory without its processes, for tests of the control plane.

The test plays the transceivers and relays: it opens their worker rows, keeps
their hearts beating and writes status rows, in the real tables.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataplane.config import Backend, Config
from dataplane.kernel.binding import row_bytes
from dataplane.node import NodeState, make_certificate
from dataplane.shm.enums import CallState, EndReason, RegionKind, WorkerKind
from dataplane.shm.flows import FlowTable
from dataplane.shm.names import SegmentNames
from dataplane.shm.routes import RouteTable
from dataplane.shm.segment import Segment, create_segment, unlink
from dataplane.shm.sessions import SessionTable
from dataplane.shm.status import StatusTable, StatusWriter
from dataplane.shm.workers import WorkerRow, WorkerTable

SDP_VECTORS = Path(__file__).parent.parent / "vectors" / "sdp"
CHROMIUM_OFFER = (SDP_VECTORS / "offer-chromium-156.sdp").read_bytes()


class BareNode:
    """Tables, and the rows of workers that only pretend to run."""

    def __init__(self, state: NodeState, segments: dict[str, Segment]) -> None:
        names = SegmentNames(state.instance)
        self.state = state
        self.sessions = SessionTable(segments[names.sessions])
        self.status = StatusTable(segments[names.status])
        self.routes = RouteTable(segments[names.routes])
        self.workers = WorkerTable(segments[names.workers])
        self.flows = [FlowTable(segments[names.flows(i)]) for i in range(state.config.relays)]

    def start_worker(self, kind: WorkerKind, index: int, now_ns: int, life: int = 1) -> WorkerRow:
        """Its pid is the test's own."""
        row = self.workers.open_row(kind, index, life)
        row.heartbeat(now_ns, 0)
        return row

    def start_transceivers(self, now_ns: int, life: int = 1) -> list[WorkerRow]:
        return [
            self.start_worker(WorkerKind.TRANSCEIVER, index, now_ns, life)
            for index in range(self.state.config.transceivers)
        ]

    def start_call(self, slot: int, life: int = 1) -> StatusWriter:
        """What a transceiver does at the first check that verifies."""
        ident = self.sessions.ident(slot)
        writer = self.status.writer(slot)
        writer.fields.generation = ident.generation
        writer.fields.worker = ident.worker
        writer.fields.incarnation = life
        writer.fields.state = CallState.ICE
        writer.publish()
        return writer

    def end_call(self, writer: StatusWriter, reason: EndReason, now_ns: int) -> None:
        writer.fields.state = CallState.ENDED
        writer.fields.end_reason = reason
        writer.fields.ended_ns = now_ns
        writer.publish()


@contextmanager
def bare_node(
    *,
    max_sessions: int = 16,
    relays: int = 1,
    transceivers: int = 2,
    backends: tuple[str, ...] = ("echo", "parrot"),
    api_key: str = "",
    http_port: int = 0,
) -> Iterator[BareNode]:
    """Fresh segments under a name of their own; gone afterwards."""
    config = Config(
        http=("127.0.0.1", http_port),
        advertise=("127.0.0.1", "::1"),
        relays=relays,
        transceivers=transceivers,
        backends=tuple(Backend(name, f"/nonexistent/{name}.sock") for name in backends),
        max_sessions=max_sessions,
        flows_per_relay=64,
        api_key=api_key,
        log_format="json",
    )
    certificate_pem, private_key_pem = make_certificate()
    state = NodeState(
        config=config,
        boot_id=secrets.token_hex(16),
        instance=f"test{secrets.token_hex(6)}",
        node_id=7,
        cluster_keys=f"3:{secrets.token_hex(16)}",
        certificate_pem=certificate_pem,
        private_key_pem=private_key_pem,
        udp_port=3478,
        http_port=http_port,
        hop_ports=tuple(40000 + index for index in range(transceivers)),
        supervisor_pid=0,
    )
    segments: dict[str, Segment] = {}
    try:
        for name, kind, rows in _segments_of(state):
            segments[name] = create_segment(name, kind, rows, row_bytes(kind), state.boot_id)
        yield BareNode(state, segments)
    finally:
        for name, segment in segments.items():
            segment.close()
            unlink(name)


def _segments_of(state: NodeState) -> list[tuple[str, RegionKind, int]]:
    names = SegmentNames(state.instance)
    config = state.config
    return [
        (names.sessions, RegionKind.SESSIONS, config.max_sessions),
        (names.status, RegionKind.STATUS, config.max_sessions),
        (names.routes, RegionKind.ROUTES, 64),
        (names.workers, RegionKind.WORKERS, 130),
        *((names.flows(i), RegionKind.FLOWS, config.flows_per_relay) for i in range(config.relays)),
    ]


def listening_socket() -> socket.socket:
    """As the supervisor makes it: bound, listening, to be inherited."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.set_inheritable(True)
    return listener
