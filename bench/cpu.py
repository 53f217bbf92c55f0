"""CPU time of processes, and whether the machine was ours while we measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NS_PER_S = 1_000_000_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_ns(pid: int) -> int:
    """User + system time of a process's living threads, ns.

    From the scheduler's own account (/proc/PID/task/*/schedstat, ns). Where the
    kernel has none, from /proc/PID/stat in ticks of 10 ms. ProcessLookupError
    when the process is gone.
    """
    total = 0
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    for task in tasks:
        try:
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
        except FileNotFoundError:
            return _cpu_ns_in_ticks(pid)
    return total


def _cpu_ns_in_ticks(pid: int) -> int:
    # Fields 14 and 15 (utime, stime), counted after the command, which may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * NS_PER_S // _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class MachineTime:
    """Totals of /proc/stat's first line, in ticks."""

    total: int
    idle: int
    steal: int

    @classmethod
    def now(cls) -> MachineTime:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        return cls(total=sum(fields), idle=fields[3] + fields[4], steal=fields[7])

    def shares_since(self, earlier: MachineTime) -> tuple[float, float]:
        """(busy, steal) of all CPUs between two readings, 0..1."""
        total = max(1, self.total - earlier.total)
        idle = self.idle - earlier.idle
        steal = self.steal - earlier.steal
        return (total - idle - steal) / total, steal / total
