"""One supervised process: started or adopted, watched through a pidfd.

A pidfd names one process for ever, so nothing here can signal a stranger that
was given a dead worker's pid. It works alike for children and for processes
that an earlier supervisor started.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.workers.run_dir import ProcessRecord

BACKOFF_FIRST_NS = 250_000_000
BACKOFF_LONGEST_NS = 5_000_000_000
# Who lived this long did start; its death is news, not a repetition.
GROWN_UP_NS = 10_000_000_000
# New calls end first, then those that run, then what fed them.
STOP_ORDER = ("control plane", "transceiver", "relay", "backend")
STOP_GRACE_NS = 5_000_000_000
STOP_POLL_MS = 100
# They are for us alone: a backend is somebody else's program.
SECRET_VARIABLES = ("EARSHOT_API_KEY", "EARSHOT_CLUSTER_KEYS")


class Backoff:
    """How long to wait before a restart: not at all after the first death, then
    0.25, 0.5, 1 … 5 s for those that die young."""

    def __init__(self) -> None:
        self._young_deaths = 0

    def delay_ns(self, lifetime_ns: int) -> int:
        """To be asked once for every death."""
        if lifetime_ns >= GROWN_UP_NS:
            self._young_deaths = 0
        self._young_deaths += 1
        if self._young_deaths == 1:
            return 0
        # The exponent is bounded so that a process that never starts does not
        # grow a number of a thousand digits over the weeks.
        doublings = min(self._young_deaths - 2, 8)
        return min(BACKOFF_FIRST_NS << doublings, BACKOFF_LONGEST_NS)


@dataclass(frozen=True)
class Plan:
    """What is to run under a name, for ever."""

    name: str
    command: Callable[[int, dict[str, int]], list[str]]
    """From the incarnation and the sockets' descriptors to the command line."""
    sockets: tuple[str, ...] = ()
    before_start: Callable[[], None] | None = None


@dataclass
class Process:
    """One running process."""

    name: str
    pid: int
    pidfd: int
    start_ticks: int
    incarnation: int
    sockets: dict[str, int]
    born_ns: int
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    """None for an adopted process: its exit status goes to init."""

    @property
    def record(self) -> ProcessRecord:
        return ProcessRecord(self.name, self.pid, self.start_ticks, self.incarnation, self.sockets)

    def is_alive(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def bury(self) -> str:
        """Lets go of a dead process and says how it died."""
        os.close(self.pidfd)
        if self.child is None:
            return "unknown (adopted)"
        # What a backend started and left running would keep its socket. Until
        # wait() the dead child keeps its pid, so the group can only be its own.
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self.child.wait()
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def start(plan: Plan, incarnation: int, sockets: dict[str, int], now_ns: int) -> Process:
    """Starts ``plan`` with the named sockets inherited under the same numbers.

    In a session of its own, so that a terminal's Ctrl-C reaches the supervisor
    alone, which then stops the others in order. Raises OSError.
    """
    if plan.before_start is not None:
        plan.before_start()
    mine = {name: sockets[name] for name in plan.sockets if name in sockets}
    environ = {key: text for key, text in os.environ.items() if key not in SECRET_VARIABLES}
    child = subprocess.Popen(
        plan.command(incarnation, mine),
        stdin=subprocess.DEVNULL,
        stdout=2,  # stdout is the supervisor's; what a child prints belongs to the log
        pass_fds=tuple(mine.values()),
        start_new_session=True,
        env=environ,
    )
    # Until we wait for it a child keeps its pid, even dead.
    pidfd = os.pidfd_open(child.pid)
    return Process(
        plan.name, child.pid, pidfd, start_ticks(child.pid), incarnation, mine, now_ns, child
    )


def find(record: ProcessRecord, now_ns: int) -> Process | None:
    """The living process that ``record`` speaks of, or None if it is gone."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError:
        return None
    process = Process(
        record.name,
        record.pid,
        pidfd,
        record.start_ticks,
        record.incarnation,
        dict(record.sockets),
        now_ns,
    )
    # Compared after the pidfd is open: from here on it cannot change hands.
    with suppress(OSError, ValueError):
        if start_ticks(record.pid) == record.start_ticks and process.is_alive():
            return process
    os.close(pidfd)
    return None


def stop_in_order(running: Iterable[Process], hurry: Callable[[], bool]) -> dict[str, str]:
    """SIGTERM kind by kind as in ``STOP_ORDER``, SIGKILL after 5 s, or at once
    when ``hurry`` says so. Returns how each ended, by name."""
    ends: dict[str, str] = {}
    rest = list(running)
    for kind in STOP_ORDER:
        group = [process for process in rest if kind_of(process.name) == kind]
        for process in group:
            process.signal(signal.SIGTERM)
        deadline_ns = time.monotonic_ns() + STOP_GRACE_NS
        while any(process.is_alive() for process in group):
            if hurry() or time.monotonic_ns() > deadline_ns:
                for process in group:
                    process.signal(signal.SIGKILL)
            _wait_for_a_death(group, STOP_POLL_MS)
        for process in group:
            ends[process.name] = process.bury()
    return ends


def kind_of(name: str) -> str:
    """``relay 0`` is a relay."""
    return next((kind for kind in STOP_ORDER if name.startswith(kind)), "backend")


def _wait_for_a_death(group: Iterable[Process], timeout_ms: int) -> None:
    poll = select.poll()
    for process in group:
        if process.is_alive():
            poll.register(process.pidfd, select.POLLIN)
    poll.poll(timeout_ms)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the machine's boot. Raises
    OSError for no process."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # Field 2, the command, may hold spaces and parentheses: count from its end.
    return int(text.rpartition(")")[2].split()[19])
