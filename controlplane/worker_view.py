"""What the control plane knows of the other processes, from the worker table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.placement import TransceiverLoad
from dataplane.shm.enums import WorkerKind
from dataplane.shm.workers import WorkerInfo, WorkerTable

SILENCE_LIMIT_NS = 30_000_000_000
"""A transceiver that was not heard for so long counts as dead even if a process
of its pid exists: the pid may be another's by now, and its clients' consent has
expired anyway (RFC 7675 section 5.1)."""

_CPU_WINDOW_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TransceiverState:
    """One reading of a transceiver's row."""

    incarnation: int
    running: bool
    heartbeat_ns: int

    def has_lost(self, incarnation: int, now_ns: int) -> bool:
        """Whether the calls of that life of the process are gone with it."""
        if self.incarnation != incarnation:
            return self.incarnation > incarnation
        return not self.running or now_ns - self.heartbeat_ns > SILENCE_LIMIT_NS


class WorkerView:
    """The transceivers, re-read at every tick, and everybody's share of a core."""

    def __init__(self, table: WorkerTable, transceivers: int) -> None:
        self._table = table
        self._count = transceivers
        self._states: dict[int, TransceiverState] = {}
        self._cpu: dict[tuple[int, int], _CpuWindow] = {}
        self._sampled_ns = 0

    def refresh(self, now_ns: int) -> None:
        """Costs some 20 us for each transceiver."""
        for index in range(self._count):
            info = self._table.find(WorkerKind.TRANSCEIVER, index)
            if info is not None:
                self._states[index] = TransceiverState(
                    info.incarnation, is_running(info.pid), info.heartbeat_ns
                )
        if now_ns - self._sampled_ns >= _CPU_WINDOW_NS:
            self._sampled_ns = now_ns
            for info in self._table.all():
                self._cpu.setdefault((info.kind, info.index), _CpuWindow()).add(info)

    def transceiver(self, index: int) -> TransceiverState | None:
        return self._states.get(index)

    def loads(self, sessions: Mapping[int, int], now_ns: int) -> list[TransceiverLoad]:
        """For placement. sessions: calls by worker."""
        return [
            TransceiverLoad(
                index, sessions.get(index, 0), state.running, now_ns - state.heartbeat_ns
            )
            for index, state in self._states.items()
        ]

    def cpu_share(self, info: WorkerInfo) -> float:
        """Of one core, over about the last second that the worker told of."""
        window = self._cpu.get((info.kind, info.index))
        return 0.0 if window is None else window.share


class _CpuWindow:
    """CPU time against wall time between two heartbeats of one process."""

    def __init__(self) -> None:
        self.share = 0.0
        self._last: WorkerInfo | None = None

    def add(self, info: WorkerInfo) -> None:
        last, self._last = self._last, info
        if last is None or last.pid != info.pid or info.heartbeat_ns <= last.heartbeat_ns:
            self.share = 0.0
            return
        self.share = (info.cpu_ns - last.cpu_ns) / (info.heartbeat_ns - last.heartbeat_ns)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that nobody has reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything, parentheses too (proc(5)).
            state = file.read(512).rpartition(b")")[2].split(maxsplit=1)[0]
    except (OSError, IndexError):
        return False
    return state not in (b"Z", b"X")
