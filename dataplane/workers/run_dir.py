"""The run directory: what one supervisor leaves for the next.

    lock            flock'ed while a supervisor lives, with its pid
    node.json       dataplane.node.NodeState
    processes.json  which processes run, with which sockets
    NAME.sock       of backends that Earshot starts

Nobody but the node's user may enter it.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dataplane.node import NODE_FILE, instance_of, write_private
from dataplane.workers.sockets import StartError

LOCK_FILE = "lock"
PROCESSES_FILE = "processes.json"
SHARED_MEMORY = Path("/dev/shm")
MACHINE_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessRecord:
    """One process of ours, so that a later supervisor knows it for certain."""

    name: str
    """``relay 0``; also its key."""
    pid: int
    start_ticks: int
    """proc(5) stat field 22. With the pid it names one process of a machine's boot."""
    incarnation: int
    sockets: dict[str, int]
    """Name to descriptor number in that process."""


@dataclass(frozen=True)
class Records:
    """processes.json."""

    version: str
    machine_boot_id: str
    supervisor_incarnation: int
    processes: tuple[ProcessRecord, ...]
    dead: dict[str, int]
    """Incarnation of those that wait for their restart."""

    def save(self, run_dir: Path) -> None:
        write_private(run_dir / PROCESSES_FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, run_dir: Path) -> Records:
        """Raises OSError, or ValueError if the file is not what ``save`` wrote."""
        try:
            values = json.loads((run_dir / PROCESSES_FILE).read_text(encoding="utf-8"))
            values["processes"] = tuple(ProcessRecord(**item) for item in values["processes"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{PROCESSES_FILE} is of another version: {error}") from None


def machine_boot_id() -> str:
    return MACHINE_BOOT_ID.read_text().strip()


def prepare(run_dir: Path) -> None:
    """Makes the directory, or refuses one that others could write to.

    Raises StartError.
    """
    try:
        run_dir.mkdir(mode=0o700, exist_ok=True)
        info = run_dir.lstat()
    except OSError as error:
        raise StartError(
            f"run directory {run_dir}: {error.strerror}; choose another with --run-dir"
        ) from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise StartError(
            f"run directory {run_dir} is not a directory of ours (somebody else made it);"
            " remove it or choose another with --run-dir"
        )
    run_dir.chmod(0o700)


class RunDirLock:
    """Held by the one living supervisor; the kernel lets go of it at any death."""

    def __init__(self, run_dir: Path) -> None:
        """Raises StartError when another supervisor holds it."""
        path = run_dir / LOCK_FILE
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                raise StartError(
                    f"Earshot is already running here: supervisor pid {pid} holds {run_dir}."
                    f" Stop it with 'kill {pid}', or start a second node with another --udp-port,"
                    " --http and --run-dir."
                ) from None
            # Between open and flock a stopping supervisor may have removed the
            # file; then this is a lock that nobody else will ever see.
            with suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == path.stat().st_ino:
                    break
            os.close(fd)
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd
        self._run_dir = run_dir

    def remove(self) -> None:
        """Removes the lock, then the directory if nothing else is in it (or it
        belongs to systemd)."""
        (self._run_dir / LOCK_FILE).unlink(missing_ok=True)
        os.close(self._fd)
        with suppress(OSError):
            self._run_dir.rmdir()


def clean(run_dir: Path) -> None:
    """Removes what a node leaves behind: its files, sockets and shared memory."""
    for name in (NODE_FILE, PROCESSES_FILE, f".{NODE_FILE}.new", f".{PROCESSES_FILE}.new"):
        (run_dir / name).unlink(missing_ok=True)
    for path in run_dir.glob("*.sock"):
        if path.is_socket():
            path.unlink(missing_ok=True)
    for path in segment_files(run_dir):
        path.unlink(missing_ok=True)


def segment_files(run_dir: Path) -> list[Path]:
    """Every shared-memory segment of the node that uses this directory."""
    return sorted(SHARED_MEMORY.glob(f"earshot.{instance_of(str(run_dir))}.*"))
