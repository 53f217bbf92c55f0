"""The node's shared-memory segments: who they are for, made and checked whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.kernel.binding import MAX_TRANSCEIVERS, WORKER_ROWS, row_bytes
from dataplane.node import NodeState
from dataplane.shm.enums import RegionKind
from dataplane.shm.names import SegmentNames
from dataplane.shm.segment import Segment, ShmError, create_segment
from dataplane.shm.workers import WorkerTable
from dataplane.workers.sockets import StartError

# Own transceivers, and in a fleet those of other nodes.
ROUTE_ROWS = 16 * MAX_TRANSCEIVERS


class SegmentError(Exception):
    """A running node's shared memory is not what its node.json says."""


@dataclass(frozen=True)
class _Shape:
    name: str
    kind: RegionKind
    row_count: int
    owner_index: int = 0


def create_segments(node: NodeState) -> None:
    """Raises StartError; the caller removes what was made so far."""
    for shape in _shapes(node):
        try:
            create_segment(
                shape.name,
                shape.kind,
                shape.row_count,
                row_bytes(shape.kind),
                bytes.fromhex(node.boot_id),
                shape.owner_index,
            ).close()
        except (OSError, ShmError) as error:
            raise StartError(str(error)) from None


def check_segments(node: NodeState) -> None:
    """Raises SegmentError unless every segment is there, of this layout version
    and of this boot of the node."""
    boot_id = bytes.fromhex(node.boot_id)
    for shape in _shapes(node):
        try:
            Segment.attach(shape.name, shape.kind, boot_id, writable=False).close()
        except (OSError, ShmError) as error:
            raise SegmentError(str(error)) from None


def open_worker_table(node: NodeState) -> WorkerTable:
    name = SegmentNames(node.instance).workers
    boot_id = bytes.fromhex(node.boot_id)
    return WorkerTable(Segment.attach(name, RegionKind.WORKERS, boot_id, writable=True))


def _shapes(node: NodeState) -> Iterator[_Shape]:
    names, config = SegmentNames(node.instance), node.config
    yield _Shape(names.sessions, RegionKind.SESSIONS, config.max_sessions)
    yield _Shape(names.status, RegionKind.STATUS, config.max_sessions)
    yield _Shape(names.routes, RegionKind.ROUTES, ROUTE_ROWS)
    yield _Shape(names.workers, RegionKind.WORKERS, WORKER_ROWS)
    for index in range(config.relays):
        yield _Shape(names.flows(index), RegionKind.FLOWS, config.flows_per_relay, index)
