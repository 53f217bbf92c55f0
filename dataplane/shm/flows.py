"""A relay's flow table, for its owner's slow path, the admin API and tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from dataplane.kernel import binding
from dataplane.kernel.binding import CData, ClientAddress, HasRegion, Region


class Install(IntEnum):
    """What installing a flow came to (``enum ek_install``)."""

    NEW = 0
    MOVED = 1
    EVICTED = 2


@dataclass(frozen=True, slots=True)
class Flow:
    """Client address → session. Addresses are 16 bytes, IPv4 mapped."""

    client: ClientAddress
    local_ip: bytes
    node_id: int
    worker: int
    slot: int
    generation: int
    last_seen_ns: int


class FlowTable:
    """View of one flow table. Raises OSError (EINVAL) when its row count is no
    power of two."""

    def __init__(self, segment: HasRegion) -> None:
        self.segment = segment
        self.region: Region = segment.region
        self.row_count = self.region.row_count
        binding.flow_check(self.region)

    def install(self, flow: Flow) -> Install:
        """Install or move a flow. For the table's relay only."""
        return Install(binding.flow_install(self.region, _to_struct(flow)))

    def lookup(self, client: ClientAddress) -> Flow | None:
        """From any process. A row that is being written is not found."""
        row = binding.flow_lookup(self.region, client)
        return _from_struct(row) if row else None

    def items(self) -> Iterator[Flow]:
        """Every flow, each consistent in itself."""
        for index in range(self.row_count):
            row = binding.flow_read(self.region, index)
            if row:
                yield _from_struct(row)

    def count_live(self, since_ns: int) -> int:
        """How many clients were heard at or after ``since_ns``."""
        return binding.flow_count_live(self.region, since_ns)

    def recover(self) -> int:
        """Free the rows that a dead relay left half-written; how many."""
        return binding.flow_recover(self.region)


def _to_struct(flow: Flow) -> CData:
    ip, port, transport = flow.client
    row = binding.new_flow()
    row.client_ip = list(ip)
    row.client_port = port
    row.transport = transport
    row.local_ip = list(flow.local_ip)
    row.node_id = flow.node_id
    row.worker = flow.worker
    row.slot = flow.slot
    row.generation = flow.generation
    row.last_seen_ns = flow.last_seen_ns
    return row


def _from_struct(row: CData) -> Flow:
    return Flow(
        client=(bytes(row.client_ip), int(row.client_port), int(row.transport)),
        local_ip=bytes(row.local_ip),
        node_id=int(row.node_id),
        worker=int(row.worker),
        slot=int(row.slot),
        generation=int(row.generation),
        last_seen_ns=int(row.last_seen_ns),
    )
