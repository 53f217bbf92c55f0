"""The worker table: who runs, when it last said so, and what it counted."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from dataplane.kernel import binding
from dataplane.kernel.binding import CData, HasRegion, Region
from dataplane.shm.enums import Counter, WorkerKind

COUNTER_NAMES = {counter: counter.name.lower() for counter in Counter}


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One process. ``heartbeat_ns`` is CLOCK_MONOTONIC, ``cpu_ns`` the CPU time
    that it used until then."""

    kind: WorkerKind
    index: int
    pid: int
    incarnation: int
    started_unix_ns: int
    heartbeat_ns: int
    load: int
    cpu_ns: int
    counters: dict[str, int]
    """By counter name, in lower case; all of them."""


class WorkerRow:
    """A process's own row."""

    def __init__(self, row: CData, region: Region) -> None:
        self.row: CData = row
        self._region = region  # keeps the mapping that the row is in

    @property
    def counters(self) -> CData:
        """The ``uint64_t[]`` of the row, for reading one's own counts."""
        return self.row.counters

    def count(self, counter: Counter, n: int = 1) -> None:
        binding.worker_count(self.row, counter, n)

    def heartbeat(self, now_ns: int, load: int) -> None:
        """Say that we live, how many calls or flows we hold, and our CPU time."""
        binding.worker_heartbeat(self.row, now_ns, load, time.process_time_ns())


class WorkerTable:
    """View of the worker table."""

    def __init__(self, segment: HasRegion) -> None:
        self.segment = segment
        self.region: Region = segment.region
        self.row_count = self.region.row_count

    def open_row(self, kind: WorkerKind, index: int, incarnation: int) -> WorkerRow:
        """This process's row. Counters go on from the predecessor's."""
        row = self.region.writable_row(row_index(kind, index))
        binding.worker_open(row, kind, index, os.getpid(), incarnation, time.time_ns())
        return WorkerRow(row, self.region)

    def read(self, row: int) -> WorkerInfo | None:
        """None when no process ever had that row."""
        copy = binding.worker_read(self.region.row(row))
        return _from_struct(copy) if copy else None

    def find(self, kind: WorkerKind, index: int = 0) -> WorkerInfo | None:
        """The process of that kind and index, dead or alive."""
        return self.read(row_index(kind, index))

    def all(self) -> list[WorkerInfo]:
        """Every process that has a row, relays first."""
        infos = (self.read(i) for i in range(self.row_count))
        return [info for info in infos if info]


def row_index(kind: WorkerKind, index: int = 0) -> int:
    """Raises ValueError for a worker that can have no row."""
    if kind is WorkerKind.RELAY and 0 <= index < binding.MAX_RELAYS:
        return index
    if kind is WorkerKind.TRANSCEIVER and 0 <= index < binding.MAX_TRANSCEIVERS:
        return binding.WORKER_ROW_TRANSCEIVER_0 + index
    if kind is WorkerKind.CONTROL_PLANE:
        return binding.WORKER_ROW_CONTROL_PLANE
    if kind is WorkerKind.SUPERVISOR:
        return binding.WORKER_ROW_SUPERVISOR
    raise ValueError(f"no row for {kind!r} {index}")


def _from_struct(copy: CData) -> WorkerInfo:
    counters = copy.counters
    return WorkerInfo(
        kind=WorkerKind(copy.kind),
        index=int(copy.index),
        pid=int(copy.pid),
        incarnation=int(copy.incarnation),
        started_unix_ns=int(copy.started_unix_ns),
        heartbeat_ns=int(copy.heartbeat_ns),
        load=int(copy.load),
        cpu_ns=int(copy.cpu_ns),
        counters={name: int(counters[counter]) for counter, name in COUNTER_NAMES.items()},
    )
