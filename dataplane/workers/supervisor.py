"""The supervisor: owns the public sockets and the shared memory, runs the rest.

It starts the backends, the transceivers, the relays and the control plane,
restarts what dies, and stops them in order. It is on nobody's path: killed, it
is missed by no call, and the next one adopts what still runs (adopt.py).
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from setproctitle import setproctitle

from dataplane.config import Config, ConfigError
from dataplane.launch import version
from dataplane.log import flush, get_logger, is_pretty, setup
from dataplane.node import NODE_FILE, NodeState, instance_of, make_certificate
from dataplane.settings import build_parser, is_loopback, load_config
from dataplane.shm.enums import WorkerKind
from dataplane.workers.adopt import Inherited, take_over
from dataplane.workers.banner import banner, talk_url
from dataplane.workers.plans import make_plans, remove_stale_socket
from dataplane.workers.processes import Backoff, Plan, Process, start, stop_in_order
from dataplane.workers.run_dir import (
    Records,
    RunDirLock,
    clean,
    machine_boot_id,
    prepare,
)
from dataplane.workers.segments import create_segments, open_worker_table
from dataplane.workers.sockets import (
    BUFFER_BYTES,
    StartError,
    close_sockets,
    enlarge_buffers,
    has_ipv6,
    machine_addresses,
    make_sockets,
    port_of,
)

log = get_logger()

HEARTBEAT_NS = 500_000_000
STARTING_POLL_NS = 50_000_000
# A cold start reads a hundred megabytes of libraries from a slow disk.
WORKERS_WITHIN_NS = 20_000_000_000
# A backend may load a model first; calls to it wait, the rest need not.
BACKENDS_WITHIN_NS = 3_000_000_000


class Signals:
    """SIGTERM, SIGINT and a terminal's hang-up, as a flag and a wake-up."""

    def __init__(self) -> None:
        self.received = 0
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._receive)

    def _receive(self, _number: int, _frame: object) -> None:
        self.received += 1

    def drain(self) -> None:
        with suppress(BlockingIOError):
            self.reader.recv(64)


class Supervisor:
    """Keeps a node's processes running until it is told to stop."""

    def __init__(
        self,
        node: NodeState,
        plans: dict[str, Plan],
        sockets: dict[str, socket.socket],
        inherited: Inherited | None,
        signals: Signals,
    ) -> None:
        self._node = node
        self._run_dir = Path(node.config.run_dir)
        self._plans = plans
        self._sockets = sockets
        self._adopted = inherited is not None
        self._signals = signals
        self._running: dict[str, Process] = {}
        self._incarnations: dict[str, int] = dict.fromkeys(plans, 0)
        self._backoffs = {name: Backoff() for name in plans}
        self._restart_at_ns: dict[str, int] = dict.fromkeys(plans, 0)
        self._incarnation = 1
        self._started_ns = time.monotonic_ns()
        self._announced = False
        self._heartbeat_ns = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals.reader, selectors.EVENT_READ, None)
        if inherited is not None:
            self._incarnation = inherited.supervisor_incarnation + 1
            self._incarnations |= inherited.incarnations
            for process in inherited.processes.values():
                self._watch(process)
            for name in inherited.restart:
                if name in self._running:
                    self._running[name].signal(signal.SIGTERM)
        self._table = open_worker_table(node)
        self._row = self._table.open_row(WorkerKind.SUPERVISOR, 0, self._incarnation)

    def run(self) -> None:
        """Until SIGTERM, SIGINT or SIGHUP; then everything is stopped."""
        while not self._signals.received:
            now_ns = time.monotonic_ns()
            self._handle_timers(now_ns)
            timeout_s = max(0, self._next_timeout() - time.monotonic_ns()) / 1e9
            for key, _events in self._selector.select(timeout_s):
                if key.data is None:
                    self._signals.drain()
                else:
                    self._handle_death(key.data, time.monotonic_ns())
        self._stop()

    def _stop(self) -> None:
        log.info("node.stopping", processes=len(self._running))
        for process in self._running.values():
            self._selector.unregister(process.pidfd)
        ends = stop_in_order(self._running.values(), lambda: self._signals.received > 1)
        self._running.clear()
        log.info("node.stopped", ends=ends)
        self._selector.close()

    # --- processes ---

    def _watch(self, process: Process) -> None:
        self._running[process.name] = process
        self._restart_at_ns.pop(process.name, None)
        self._selector.register(process.pidfd, selectors.EVENT_READ, process)

    def _start(self, name: str, now_ns: int) -> None:
        self._incarnations[name] += 1
        fds = {key: sock.fileno() for key, sock in self._sockets.items()}
        try:
            process = start(self._plans[name], self._incarnations[name], fds, now_ns)
        except OSError as error:
            delay_ns = max(self._backoffs[name].delay_ns(0), HEARTBEAT_NS)
            self._restart_at_ns[name] = now_ns + delay_ns
            log.error("process.not_started", name=name, error=str(error), again_in_ms=_ms(delay_ns))
            return
        self._watch(process)
        self._save()
        log.info("process.started", name=name, pid=process.pid, incarnation=process.incarnation)

    def _handle_death(self, process: Process, now_ns: int) -> None:
        self._selector.unregister(process.pidfd)
        del self._running[process.name]
        end = process.bury()
        lived_ns = now_ns - process.born_ns
        delay_ns = self._backoffs[process.name].delay_ns(lived_ns)
        self._restart_at_ns[process.name] = now_ns + delay_ns
        self._save()
        log.warning(
            "process.died",
            name=process.name,
            pid=process.pid,
            end=end,
            lived_ms=_ms(lived_ns),
            again_in_ms=_ms(delay_ns),
        )

    def _save(self) -> None:
        dead = {name: n for name, n in self._incarnations.items() if name not in self._running}
        Records(
            version(),
            machine_boot_id(),
            self._incarnation,
            tuple(process.record for process in self._running.values()),
            dead,
        ).save(self._run_dir)

    # --- time ---

    def _next_timeout(self) -> int:
        wake_ns = self._heartbeat_ns + HEARTBEAT_NS
        if not self._announced:
            wake_ns = min(wake_ns, time.monotonic_ns() + STARTING_POLL_NS)
        return min([wake_ns, *self._restart_at_ns.values()])

    def _handle_timers(self, now_ns: int) -> None:
        for name in [name for name, at_ns in self._restart_at_ns.items() if at_ns <= now_ns]:
            self._start(name, now_ns)
        if now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self._row.heartbeat(now_ns, len(self._running))
        if not self._announced:
            self._announce_when_up(now_ns)

    def _announce_when_up(self, now_ns: int) -> None:
        workers, backends = self._workers_not_up(), self._backends_not_up()
        waited_ns = now_ns - self._started_ns
        if not workers and (not backends or waited_ns > BACKENDS_WITHIN_NS):
            self._announced = True
            self._announce(backends)
        elif waited_ns > WORKERS_WITHIN_NS:
            self._announced = True
            log.error(
                "node.incomplete",
                not_up=workers + backends,
                hint="see the lines above; they are tried again, or run 'earshot doctor'",
            )

    def _workers_not_up(self) -> list[str]:
        """Those without a heartbeat of their present life."""
        beating = {row.pid for row in self._table.all() if row.heartbeat_ns}
        return [
            name
            for name in self._plans
            if not name.startswith("backend ")
            and (name not in self._running or self._running[name].pid not in beating)
        ]

    def _backends_not_up(self) -> list[str]:
        """Ours to start, and without a socket."""
        return [
            f"backend {backend.name}"
            for backend in self._node.config.backends
            if backend.command and not Path(backend.path).exists()
        ]

    def _announce(self, backends_missing: list[str]) -> None:
        node = self._node
        if backends_missing:
            log.warning("backend.not_listening", not_up=backends_missing)
        if is_pretty(node.config.log_format):
            flush()
            with suppress(OSError):
                print(banner(node, self._adopted), file=sys.stderr, flush=True)
            return
        log.info(
            "node.up",
            version=version(),
            url=talk_url(node),
            udp_port=node.udp_port,
            advertise=list(node.config.advertise),
            backends={backend.name: backend.path for backend in node.config.backends},
            pids={name: process.pid for name, process in self._running.items()},
            adopted=self._adopted,
        )


def _ms(duration_ns: int) -> int:
    return duration_ns // 1_000_000


def _make_node(config: Config, sockets: dict[str, socket.socket]) -> NodeState:
    certificate_pem, private_key_pem = make_certificate()
    return NodeState(
        config=config,
        boot_id=secrets.token_hex(16),
        instance=instance_of(config.run_dir),
        node_id=config.node_id,
        cluster_keys=config.cluster_keys or f"0:{secrets.token_hex(32)}",
        certificate_pem=certificate_pem,
        private_key_pem=private_key_pem,
        udp_port=port_of(sockets["udp4.0"]),
        http_port=port_of(sockets["http"]),
        hop_ports=tuple(port_of(sockets[f"hop.{i}"]) for i in range(config.transceivers)),
        supervisor_pid=os.getpid(),
    )


def _fresh_node(config: Config, run_dir: Path) -> tuple[NodeState, dict[str, socket.socket]]:
    """Sockets, shared memory and node.json, or StartError and nothing."""
    sockets: dict[str, socket.socket] = {}
    try:
        sockets |= make_sockets(config)
        node = _make_node(config, sockets)
        create_segments(node)
        node.save(run_dir / NODE_FILE)
    except BaseException as error:
        close_sockets(sockets)
        clean(run_dir)
        if isinstance(error, OSError):
            raise StartError(f"run directory {run_dir}: {error}") from None
        raise
    return node, sockets


def _with_addresses(config: Config, ipv6: bool) -> Config:
    """Fills in what the clients are told to send to."""
    if config.advertise:
        return config
    addresses = machine_addresses(with_loopback=is_loopback(config.http[0]))
    return replace(config, advertise=tuple(item for item in addresses if ipv6 or ":" not in item))


def _run_node(config: Config, run_dir: Path, signals: Signals) -> None:
    """A node from start to stop. Raises StartError, with nothing left behind."""
    ipv6 = has_ipv6()
    config = _with_addresses(config, ipv6)
    plans = make_plans(config, run_dir / NODE_FILE, ipv6)
    inherited = take_over(config, plans, run_dir, time.monotonic_ns())
    if inherited is not None:
        node, sockets = inherited.node, inherited.sockets
        node.save(run_dir / NODE_FILE)
    else:
        node, sockets = _fresh_node(config, run_dir)
    _warn_of_small_buffers(sockets)
    Supervisor(node, plans, sockets, inherited, signals).run()
    for backend in config.backends:
        if backend.command:
            remove_stale_socket(backend.path)  # wherever it stands
    clean(run_dir)


def _warn_of_small_buffers(sockets: dict[str, socket.socket]) -> None:
    got = enlarge_buffers(sockets["udp4.0"])
    if got < BUFFER_BYTES:
        log.warning(
            "socket.small_buffer",
            bytes=got,
            wanted=BUFFER_BYTES,
            hint=f"sysctl -w net.core.rmem_max={BUFFER_BYTES} net.core.wmem_max={BUFFER_BYTES}",
        )


def _load(argv: Sequence[str]) -> Config:
    parser = build_parser(
        "earshot up",
        "Runs one node: relays, transceivers and the control plane, until Ctrl-C or SIGTERM.",
    )
    return load_config(parser.parse_args(argv), os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """``earshot up``. Exit status 1 when it cannot start."""
    signals = Signals()
    try:
        config = _load(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        print(f"earshot: {error}", file=sys.stderr)
        return 1
    setproctitle("earshot supervisor")
    setup("supervisor", config.log_format, config.log_level)
    run_dir = Path(config.run_dir)
    lock = None
    try:
        prepare(run_dir)
        lock = RunDirLock(run_dir)
        _run_node(config, run_dir, signals)
    except StartError as error:
        if is_pretty(config.log_format):
            print(f"earshot: {error}", file=sys.stderr)
        else:
            log.error("node.not_started", reason=str(error))
        return 1
    finally:
        if lock is not None:
            lock.remove()
        flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
