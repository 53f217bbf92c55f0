"""The route table: where each transceiver's hop socket is."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.kernel import binding
from dataplane.kernel.binding import HasRegion, Region


@dataclass(frozen=True, slots=True)
class Route:
    """The hop address of one transceiver; ``ip`` is 16 bytes, IPv4 mapped."""

    node_id: int
    worker: int
    ip: bytes
    port: int


class RouteTable:
    """View of the route table. ``set`` and ``clear`` are the control plane's."""

    def __init__(self, segment: HasRegion) -> None:
        self.segment = segment
        self.region: Region = segment.region
        self.row_count = self.region.row_count

    def set(self, node_id: int, worker: int, ip16: bytes, port: int) -> None:
        """Raises OSError (ENOSPC) when the table is full."""
        binding.route_set(self.region, node_id, worker, ip16, port)

    def clear(self, node_id: int, worker: int) -> None:
        """Forget a transceiver; one that is not there is no error."""
        binding.route_clear(self.region, node_id, worker)

    def find(self, node_id: int, worker: int) -> tuple[bytes, int] | None:
        """(ip16, port), or None."""
        route = binding.route_find(self.region, node_id, worker)
        return (bytes(route.ip), int(route.port)) if route else None

    def all(self) -> list[Route]:
        """Every route, in no order."""
        rows = (binding.route_read(self.region, i) for i in range(self.row_count))
        return [
            Route(int(row.node_id), int(row.worker), bytes(row.ip), int(row.port))
            for row in rows
            if row
        ]
