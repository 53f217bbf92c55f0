"""A real node for tests: ``earshot up`` on free ports, gone without a trace after.

    with running_node(relays=2, backend_commands={"echo": ECHO}) as node:
        requests to node.http_url …
        node.kill("relay 0")

Every process of the node writes its stderr to one file, so whoever still has
that file open when the node has stopped was left behind.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dataplane.node import NodeState, instance_of
from dataplane.shm.enums import RegionKind, WorkerKind
from dataplane.shm.names import SegmentNames
from dataplane.shm.segment import Segment
from dataplane.shm.workers import WorkerTable
from dataplane.workers.run_dir import Records

ROOT = Path(__file__).parents[2]
ECHO = f"{shlex.quote(sys.executable)} {ROOT / 'examples' / 'echo.py'}"
# Several suites share two cores; nothing here waits longer than it must.
PATIENCE_S = 60.0

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, seconds: float = PATIENCE_S) -> T:
    """The first true value of ``condition``; fails the test after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)
    return value


class Node:
    """One node, through the life of several supervisors if need be."""

    def __init__(self, base: Path, flags: list[str], environ: Mapping[str, str]) -> None:
        self.base = base
        self.run_dir = base / "run"
        self.log_path = base / "log"
        self._flags = flags
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("EARSHOT_")}
        self._environ |= environ
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._ups = 0

    # --- starting and stopping ---

    def up(self, *more_flags: str, wait: bool = True) -> None:
        """Starts a supervisor: the first, or the successor of a killed one.
        ``more_flags`` win over those the node was made with."""
        assert self._supervisor is None
        self._ups = len(self.events("node.up"))
        arguments = [*self._flags, *more_flags]
        with self.log_path.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "controlplane.cli", "up", *arguments],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_healthy()

    def wait_healthy(self) -> None:
        """Until every process is up and the control plane answers."""
        wait_until(self._is_up, "node.up")
        wait_until(self._answers, "GET /healthz")

    def _is_up(self) -> bool:
        assert self._supervisor is not None
        assert self._supervisor.poll() is None, f"earshot up ended:\n{self.logs}"
        return len(self.events("node.up")) > self._ups

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/healthz", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stops the node and asserts that nothing of it is left."""
        assert self._supervisor is not None
        self._supervisor.send_signal(number)
        status = self._supervisor.wait(PATIENCE_S)
        self._supervisor = None
        assert status == 0, f"earshot up ended with {status}:\n{self.logs}"
        self.assert_nothing_left()

    def wait_ended(self) -> int:
        """The exit status of a supervisor that ends of itself."""
        assert self._supervisor is not None
        status = self._supervisor.wait(PATIENCE_S)
        self._supervisor = None
        return status

    def assert_nothing_left(self) -> None:
        assert self.processes() == {}, f"left running:\n{self.logs}"
        assert not self.run_dir.exists(), f"left in the run directory: {self._files()}"
        assert self.segments() == []

    def kill_everything(self) -> None:
        """For a test that failed: whoever has our log open is ours."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.wait(PATIENCE_S)
        for path in self.segments():
            path.unlink(missing_ok=True)

    # --- looking ---

    @property
    def state(self) -> NodeState:
        return NodeState.load(self.run_dir / "node.json")

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.state.http_port}"

    @property
    def udp_port(self) -> int:
        return self.state.udp_port

    @property
    def records(self) -> Records:
        return Records.load(self.run_dir)

    @property
    def pids(self) -> dict[str, int]:
        """``relay 0``, ``transceiver 1``, ``control plane``, ``backend echo``,
        ``supervisor``: what runs now."""
        pids = {record.name: record.pid for record in self.records.processes}
        if self._supervisor is not None:
            pids["supervisor"] = self._supervisor.pid
        return pids

    @property
    def incarnations(self) -> dict[str, int]:
        return {record.name: record.incarnation for record in self.records.processes}

    def counters(self, name: str) -> dict[str, int]:
        """By counter name in lower case; they go on through a worker's restarts."""
        kinds = {
            "relay": WorkerKind.RELAY,
            "transceiver": WorkerKind.TRANSCEIVER,
            "control plane": WorkerKind.CONTROL_PLANE,
        }
        kind, index = (name, "0") if name == "control plane" else name.split()
        state = self.state
        segment = Segment.attach(
            SegmentNames(state.instance).workers,
            RegionKind.WORKERS,
            bytes.fromhex(state.boot_id),
            writable=False,
        )
        try:
            info = WorkerTable(segment).find(kinds[kind], int(index))
            return info.counters if info else {}
        finally:
            segment.close()

    @property
    def logs(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of that name."""
        found = []
        for line in self.logs.splitlines():
            if line.startswith("{"):
                with suppress(ValueError):
                    found.append(json.loads(line))
        return [line for line in found if line.get("event") == event]

    def processes(self) -> dict[int, str]:
        """Living processes that have our log as their stderr: pid to title."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (path / "fd" / "2").readlink() == self.log_path:
                    title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found[int(path.name)] = title
        return found

    def segments(self) -> list[Path]:
        return sorted(Path("/dev/shm").glob(f"earshot.{instance_of(str(self.run_dir))}.*"))

    def _files(self) -> list[str]:
        return [path.name for path in self.run_dir.iterdir()]

    # --- hurting ---

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends the signal and returns the pid; a killed supervisor is reaped."""
        pid = self.pids[name]
        os.kill(pid, number)
        if name == "supervisor" and number == signal.SIGKILL and self._supervisor is not None:
            self._supervisor.wait(PATIENCE_S)
            self._supervisor = None
        return pid

    def wait_restarted(self, name: str, old_pid: int) -> int:
        """The pid of the successor, once it has been seen to work."""

        def successor() -> int:
            pid = self.pids.get(name, old_pid)
            if pid == old_pid or name.startswith("backend "):
                return 0 if pid == old_pid else pid
            ready = {"control plane": self._answers}.get(name, lambda: self._has_title(pid, name))
            return pid if ready() else 0

        return wait_until(successor, f"{name} to be restarted")

    def _has_title(self, pid: int, name: str) -> bool:
        return self.processes().get(pid) == f"earshot {name}"


@contextmanager
def running_node(
    *,
    relays: int = 2,
    transceivers: int = 2,
    backends: Mapping[str, str | Path] | None = None,
    backend_commands: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    start: bool = True,
    **config: Any,
) -> Iterator[Node]:
    """``backends``: name to socket path; ``backend_commands``: name to command
    (``ECHO`` is one). ``config``: any setting by its name in dataplane.config.

    A node that the test has stopped, or whose supervisor it left dead, is the
    test's business; any other is stopped at the end, without a trace.
    """
    base = Path(tempfile.mkdtemp(prefix="earshot-test-"))
    settings: dict[str, Any] = {
        "http": "127.0.0.1:0",
        "udp_port": 0,
        "relays": relays,
        "transceivers": transceivers,
        "max_sessions": 256,
        "flows_per_relay": 4096,
        "log_format": "json",
        "run_dir": base / "run",
    } | config
    node = Node(base, _flags(settings, backends or {}, backend_commands or {}), environ or {})
    try:
        if start:
            node.up()
        yield node
        if node._supervisor is not None:
            node.stop()
    except BaseException:
        print(f"--- the node's log ---\n{node.logs}", file=sys.stderr)
        raise
    finally:
        node.kill_everything()
        shutil.rmtree(base, ignore_errors=True)


def _flags(
    settings: Mapping[str, Any],
    backends: Mapping[str, str | Path],
    backend_commands: Mapping[str, str],
) -> list[str]:
    flags = []
    for name, value in settings.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            flags += ["--" + name.replace("_", "-"), str(item)]
    for name, path in backends.items():
        flags += ["--backend", f"{name}={path}"]
    for name, command in backend_commands.items():
        flags += ["--backend-command", f"{name}={command}"]
    return flags


def free_port(kind: socket.SocketKind) -> int:
    """A port that was free a moment ago, on every address."""
    with socket.socket(socket.AF_INET6, kind) as probe:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        probe.bind(("::", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port
