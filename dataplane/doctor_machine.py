"""The doctor's checks of the machine: kernel, limits, ports, memory."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from pathlib import Path

from dataplane.config import Config
from dataplane.finding import Check, Finding, failure, ok, warning
from dataplane.node import NODE_FILE, NodeFileError, NodeState
from dataplane.settings import is_loopback
from dataplane.workers.processes import find
from dataplane.workers.run_dir import Records, prepare
from dataplane.workers.sockets import (
    BUFFER_BYTES,
    StartError,
    bind_http,
    bind_public,
    enlarge_buffers,
    has_ipv6,
    machine_addresses,
    port_of,
)

# pidfd_getfd(2) came with 5.6.
OLDEST_KERNEL = (5, 6)
FREE_FILES = 128
# A reader of these costs tens of nanoseconds; of the others, microseconds.
FAST_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
CLOCK_FILE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
YAMA_FILE = Path("/proc/sys/kernel/yama/ptrace_scope")


def linux(_config: Config) -> Finding:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if numbers < OLDEST_KERNEL:
        return failure("linux", release, "Earshot needs Linux 5.6 or newer (pidfd_getfd)")
    return ok("linux", release)


def socket_buffers(_config: Config) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        got = enlarge_buffers(probe)
        sent = probe.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
    found = f"receive {got:,}, send {sent:,} of {BUFFER_BYTES:,} bytes"
    if min(got, sent) < BUFFER_BYTES:
        return warning(
            "socket buffers",
            found,
            f"sysctl -w net.core.rmem_max={BUFFER_BYTES} net.core.wmem_max={BUFFER_BYTES}"
            "   (and in /etc/sysctl.d/); without, bursts are lost while a relay restarts",
        )
    return ok("socket buffers", found)


def open_files(config: Config) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # One socket to the backend for each call; one transceiver may hold them all.
    needed = config.max_sessions + FREE_FILES
    found = (
        f"limit {_limit(soft)}, at most {_limit(hard)}; {needed} for {config.max_sessions} calls"
    )
    if hard != resource.RLIM_INFINITY and hard < needed:
        return failure(
            "open files",
            found,
            f"raise the hard limit: LimitNOFILE={needed} in the systemd unit, or 'ulimit -Hn"
            f" {needed}' as root; or lower --max-sessions",
        )
    return ok("open files", found)


def udp_port(config: Config) -> Finding:
    families = [socket.AF_INET, *([socket.AF_INET6] if has_ipv6() else [])]
    for family in families:
        try:
            bind_public(family, config.udp_port, exclusive=True).close()
        except StartError as error:
            return _ours(config, "udp port") or failure("udp port", "not free", str(error))
    return ok("udp port", f"{config.udp_port} is free")


def http_port(config: Config) -> Finding:
    host, port = config.http
    try:
        bind_http(host, port).close()
    except StartError as error:
        return _ours(config, "http port") or failure("http port", "not free", str(error))
    return ok("http port", f"{host} {port} is free")


def _ours(config: Config, check: str) -> Finding | None:
    """The port is taken by the node that this configuration describes."""
    run_dir = Path(config.run_dir)
    try:
        node, records = NodeState.load(run_dir / NODE_FILE), Records.load(run_dir)
    except (NodeFileError, OSError, ValueError):
        return None
    same = {
        "udp port": node.config.udp_port == config.udp_port,
        "http port": node.config.http == config.http,
    }
    living = [process for record in records.processes if (process := find(record, 0))]
    for process in living:
        os.close(process.pidfd)
    if not same[check] or not living:
        return None
    if Path(f"/proc/{node.supervisor_pid}").exists():
        return ok(check, f"held by this node, which runs (supervisor pid {node.supervisor_pid})")
    return ok(check, "held by this node, whose supervisor is gone; 'earshot up' takes it over")


def shared_port(_config: Config) -> Finding:
    """Relays share the public port through SO_REUSEPORT."""
    try:
        with bind_public(socket.AF_INET, 0, exclusive=True) as first:
            bind_public(socket.AF_INET, port_of(first), exclusive=False).close()
    except StartError as error:
        return failure("SO_REUSEPORT", str(error), "use a kernel that has it, or --relays 1")
    return ok("SO_REUSEPORT", "two sockets share one UDP port")


def ipv6(_config: Config) -> Finding:
    if has_ipv6():
        return ok("IPv6", "available")
    return warning(
        "IPv6",
        "not available: IPv4 only",
        "sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0",
    )


def addresses(config: Config) -> Finding:
    chosen = config.advertise or machine_addresses(with_loopback=is_loopback(config.http[0]))
    found = ", ".join(chosen) or "none"
    if not any(not is_loopback(address) for address in chosen):
        return warning(
            "addresses",
            found,
            "only this machine can connect; name a public address with --advertise ADDR",
        )
    return ok("addresses", found)


def shared_memory(config: Config) -> Finding:
    needed = config.max_sessions * 17408 + config.relays * config.flows_per_relay * 96 + (1 << 20)
    path = Path(f"/dev/shm/earshot.doctor.{os.getpid()}")
    try:
        path.touch(0o600, exist_ok=False)
        path.unlink()
    except OSError as error:
        return failure(
            "shared memory", f"/dev/shm: {error.strerror}", "mount -t tmpfs none /dev/shm"
        )
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
    found = f"{free >> 20:,} MiB free, at most {-(-needed >> 20):,} MiB needed"
    if free < needed:
        return failure(
            "shared memory",
            found,
            f"mount -o remount,size={(needed >> 20) + 64}M /dev/shm   (docker: --shm-size), or"
            " lower --max-sessions and --flows-per-relay",
        )
    return ok("shared memory", found)


def cores(config: Config) -> Finding:
    count = len(os.sched_getaffinity(0))
    found = f"{count}, for {config.relays} relays and {config.transceivers} transceivers"
    if max(config.relays, config.transceivers) > count:
        return warning(
            "cores", found, f"more workers than cores only wait: --relays 1 --transceivers {count}"
        )
    return ok("cores", found)


def clock(_config: Config) -> Finding:
    try:
        source = CLOCK_FILE.read_text().strip()
    except OSError:
        return warning("clock", "source unknown", f"see {CLOCK_FILE}")
    if source not in FAST_CLOCKS:
        return warning(
            "clock",
            f"{source}: slow to read, and we read it for every batch",
            f"echo tsc > {CLOCK_FILE}   (if available_clocksource beside it lists tsc)",
        )
    return ok("clock", source)


def adoption(_config: Config) -> Finding:
    """Whether a new supervisor may take the sockets of running workers."""
    try:
        scope = int(YAMA_FILE.read_text())
    except OSError:
        scope = 0
    if scope and os.geteuid() != 0:
        return warning(
            "adoption",
            f"kernel.yama.ptrace_scope is {scope}: a killed supervisor's successor has to replace"
            " the workers, which ends calls",
            "sysctl -w kernel.yama.ptrace_scope=0, or give the unit CAP_SYS_PTRACE",
        )
    return ok("adoption", "a new supervisor may adopt running workers")


def run_directory(config: Config) -> Finding:
    path = Path(config.run_dir) if config.run_dir else None
    if path is None:
        return warning("run directory", "unknown", "correct the configuration first")
    if path.exists():
        try:
            prepare(path)
        except StartError as error:
            return failure("run directory", str(path), str(error))
        return ok("run directory", f"{path} exists")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return failure(
            "run directory", f"{path} cannot be made", f"make {path.parent} writable, or --run-dir"
        )
    return ok("run directory", f"{path} will be made")


def backends(config: Config) -> Finding:
    if not config.backends:
        return warning("backends", "none", "name one: --backend NAME=/path.sock")
    for backend in config.backends:
        if backend.command and shutil.which(backend.command[0]) is None:
            return failure(
                "backends",
                f"{backend.name}: there is no program {backend.command[0]}",
                "install it, or correct its --backend-command",
            )
        if not backend.command and not _listens(backend.path):
            return warning(
                "backends",
                f"{backend.name}: nobody listens on {backend.path}",
                "start it; calls to it wait until it listens",
            )
    return ok("backends", ", ".join(backend.name for backend in config.backends))


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its backlog is full: it is there
        except OSError:
            return False
    return True


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


CHECKS: tuple[Check, ...] = (
    linux,
    cores,
    clock,
    socket_buffers,
    open_files,
    shared_memory,
    run_directory,
    adoption,
    udp_port,
    http_port,
    shared_port,
    ipv6,
    addresses,
    backends,
)
