"""What a supervisor that was killed leaves behind: adopt it, or replace it.

Workers and calls outlive their supervisor (DESIGN law 4). The next one takes
over what fits: it learns the processes from processes.json, takes dups of
their sockets with pidfd_getfd(2) so that it can start workers again, and
watches on. What does not fit is stopped, and a fresh node is started.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dataplane.config import Config
from dataplane.kernel.binding import pidfd_getfd
from dataplane.launch import version
from dataplane.log import get_logger
from dataplane.node import NODE_FILE, NodeFileError, NodeState
from dataplane.workers.processes import Plan, Process, find, stop_in_order
from dataplane.workers.run_dir import (
    PROCESSES_FILE,
    Records,
    clean,
    machine_boot_id,
    segment_files,
)
from dataplane.workers.segments import SegmentError, check_segments
from dataplane.workers.sockets import (
    StartError,
    bind_hop,
    bind_http,
    bind_public,
    close_sockets,
    port_of,
)

log = get_logger()

# The control plane alone reads these; it loses nothing by a restart.
CONTROL_PLANE_SETTINGS = ("advertise", "api_key")


class CannotAdopt(Exception):  # noqa: N818  an outcome, not a failure
    """Why what was found is replaced."""


@dataclass
class Inherited:
    """A running node, taken over."""

    node: NodeState
    processes: dict[str, Process]
    sockets: dict[str, socket.socket]
    incarnations: dict[str, int]
    supervisor_incarnation: int
    """Of the predecessor."""
    restart: tuple[str, ...]
    """Processes that must read a changed node.json."""


def take_over(
    config: Config, plans: Mapping[str, Plan], run_dir: Path, now_ns: int
) -> Inherited | None:
    """The node that lives in ``run_dir``, or None when there is none (any more):
    then nothing of an earlier one is left, neither process, file nor memory."""
    if not any((run_dir / name).exists() for name in (NODE_FILE, PROCESSES_FILE)):
        if segment_files(run_dir):
            log.info("node.cleaned", run_dir=str(run_dir), reason="left by a dead instance")
        clean(run_dir)
        return None
    living: dict[str, Process] = {}
    sockets: dict[str, socket.socket] = {}
    try:
        records = _records(run_dir)
        living = _living(records, now_ns)
        if not living:
            log.info("node.cleaned", run_dir=str(run_dir), reason="its processes are gone")
            clean(run_dir)
            return None
        node = _node(run_dir, config, records, living, plans)
        _take_sockets(sockets, node, living, plans)
    except CannotAdopt as reason:
        close_sockets(sockets)
        pids = {name: process.pid for name, process in living.items()}
        log.warning("node.replaced", reason=str(reason), stopping=pids)
        stop_in_order(living.values(), hurry=lambda: False)
        clean(run_dir)
        return None
    changed = any(
        getattr(config, name) != getattr(node.config, name) for name in CONTROL_PLANE_SETTINGS
    )
    log.info(
        "node.adopted",
        processes={name: process.pid for name, process in living.items()},
        missing=[name for name in plans if name not in living],
    )
    return Inherited(
        replace(node, config=config, supervisor_pid=os.getpid()),
        living,
        sockets,
        records.dead | {item.name: item.incarnation for item in records.processes},
        records.supervisor_incarnation,
        ("control plane",) if changed else (),
    )


def _records(run_dir: Path) -> Records:
    try:
        return Records.load(run_dir)
    except (OSError, ValueError) as error:
        # Without it we know no process, so there is nothing we could stop.
        raise CannotAdopt(f"{run_dir / PROCESSES_FILE} cannot be read: {error}") from None


def _living(records: Records, now_ns: int) -> dict[str, Process]:
    """A pid of an earlier boot of the machine says nothing."""
    if records.machine_boot_id != machine_boot_id():
        return {}
    found = (find(record, now_ns) for record in records.processes)
    return {process.name: process for process in found if process is not None}


def _node(
    run_dir: Path,
    config: Config,
    records: Records,
    living: Mapping[str, Process],
    plans: Mapping[str, Plan],
) -> NodeState:
    """Raises CannotAdopt unless the living node is the one we are to run."""
    try:
        node = NodeState.load(run_dir / NODE_FILE)
    except NodeFileError as error:
        raise CannotAdopt(str(error)) from None
    if records.version != version():
        raise CannotAdopt(f"it runs Earshot {records.version}, this is {version()}")
    differing = [
        item.name
        for item in fields(Config)
        if item.name not in CONTROL_PLANE_SETTINGS
        and getattr(config, item.name) != getattr(node.config, item.name)
    ]
    if differing:
        raise CannotAdopt(f"the configuration differs in {', '.join(differing)}")
    if all(name.startswith("backend ") for name in living):
        raise CannotAdopt("no worker is alive")
    for name, process in living.items():
        if set(process.sockets) != set(plans[name].sockets):
            raise CannotAdopt(f"{name} holds other sockets (did IPv6 come or go?)")
    try:
        check_segments(node)
    except SegmentError as error:
        raise CannotAdopt(str(error)) from None
    return node


def _take_sockets(
    sockets: dict[str, socket.socket],
    node: NodeState,
    living: Mapping[str, Process],
    plans: Mapping[str, Plan],
) -> None:
    """Fills ``sockets``: from a living process that holds it, or made anew on
    the same port when its last holder died too. Raises CannotAdopt."""
    needed = dict.fromkeys(name for plan in plans.values() for name in plan.sockets)
    for name in needed:
        holder = next((item for item in living.values() if name in item.sockets), None)
        if holder is None:
            continue
        try:
            fd = pidfd_getfd(holder.pidfd, holder.sockets[name])
        except PermissionError:
            raise CannotAdopt(
                f"not permitted to take the sockets of pid {holder.pid} (pidfd_getfd); see"
                " kernel.yama.ptrace_scope, or CAP_SYS_PTRACE"
            ) from None
        except OSError as error:
            raise CannotAdopt(f"the sockets of {holder.name}: {error.strerror}") from None
        sockets[name] = socket.socket(fileno=fd)
        if port_of(sockets[name]) != _port(name, node):
            raise CannotAdopt(f"{holder.name} does not hold {name} where it was recorded")
    for name in needed:
        if name not in sockets:
            try:
                sockets[name] = _make_anew(name, node, sockets)
            except StartError as error:
                raise CannotAdopt(f"{name} was lost and cannot be made again: {error}") from None
            log.warning("socket.lost", socket=name, port=_port(name, node))


def _make_anew(name: str, node: NodeState, sockets: Iterable[str]) -> socket.socket:
    port = _port(name, node)
    kind = name.partition(".")[0]
    if kind == "http":
        return bind_http(node.config.http[0], port)
    if kind == "hop":
        return bind_hop(port)
    first = not any(other.startswith(kind) for other in sockets)
    return bind_public(socket.AF_INET6 if kind == "udp6" else socket.AF_INET, port, first)


def _port(name: str, node: NodeState) -> int:
    kind, _, index = name.partition(".")
    if kind == "hop":
        return node.hop_ports[int(index)]
    return node.http_port if kind == "http" else node.udp_port
