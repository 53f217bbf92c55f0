"""Makes the tables of one test; see conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dataplane.kernel import binding
from dataplane.shm.enums import RegionKind
from dataplane.shm.flows import FlowTable
from dataplane.shm.names import SegmentNames
from dataplane.shm.routes import RouteTable
from dataplane.shm.segment import Segment
from dataplane.shm.sessions import Ident, SessionConfig, SessionState, SessionTable
from dataplane.shm.status import StatusTable
from dataplane.shm.workers import WorkerTable


@dataclass(frozen=True)
class TestTables:
    """Each method makes one segment and the table on it."""

    __test__ = False  # no test class, whatever pytest makes of the name

    names: SegmentNames
    boot_id: bytes
    make: Callable[..., Segment]

    def sessions(self, rows: int = 64) -> SessionTable:
        return SessionTable(self.make(self.names.sessions, RegionKind.SESSIONS, rows))

    def status(self, rows: int = 64) -> StatusTable:
        return StatusTable(self.make(self.names.status, RegionKind.STATUS, rows))

    def routes(self, rows: int = 64) -> RouteTable:
        return RouteTable(self.make(self.names.routes, RegionKind.ROUTES, rows))

    def workers(self) -> WorkerTable:
        kind = RegionKind.WORKERS
        return WorkerTable(self.make(self.names.workers, kind, binding.WORKER_ROWS))

    def flows(self, rows: int = 64, relay: int = 0) -> FlowTable:
        return FlowTable(self.make(self.names.flows(relay), RegionKind.FLOWS, rows, relay))


def offered(generation: int, worker: int = 0, previous: int = 0) -> Ident:
    return Ident(SessionState.OFFERED, worker, previous, generation)


def config(generation: int, **values: object) -> SessionConfig:
    defaults = {"call_id": f"rtc_{generation}", "remote_fingerprint": bytes(range(32))}
    return SessionConfig(generation=generation, **(defaults | values))  # type: ignore[arg-type]
