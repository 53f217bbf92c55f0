"""Which processes a node runs, and how each is started."""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from pathlib import Path

from dataplane.config import Backend, Config
from dataplane.launch import python_module
from dataplane.workers.processes import Plan


def make_plans(config: Config, node_path: Path, has_ipv6: bool) -> dict[str, Plan]:
    """By name, in the order of starting: who is needed comes first."""
    plans = [
        *(_backend(backend) for backend in config.backends if backend.command),
        *(_transceiver(node_path, i, config, has_ipv6) for i in range(config.transceivers)),
        *(_relay(node_path, i, has_ipv6) for i in range(config.relays)),
        _control_plane(node_path),
    ]
    return {plan.name: plan for plan in plans}


def _relay(node_path: Path, index: int, has_ipv6: bool) -> Plan:
    def command(incarnation: int, fds: dict[str, int]) -> list[str]:
        return [
            *_worker("dataplane.workers.relay", node_path, index, incarnation),
            "--udp-fds",
            ",".join(str(fd) for fd in fds.values()),
        ]

    return Plan(f"relay {index}", command, _public(index, has_ipv6))


def _transceiver(node_path: Path, index: int, config: Config, has_ipv6: bool) -> Plan:
    """It sends through a relay's public sockets; which one does not matter, so
    the transceivers take turns."""
    public = _public(index % config.relays, has_ipv6)
    hop = f"hop.{index}"

    def command(incarnation: int, fds: dict[str, int]) -> list[str]:
        line = _worker("dataplane.workers.transceiver", node_path, index, incarnation)
        line += ["--hop-fd", str(fds[hop]), "--udp4-fd", str(fds[public[0]])]
        if has_ipv6:
            line += ["--udp6-fd", str(fds[public[1]])]
        return line

    return Plan(f"transceiver {index}", command, (hop, *public))


def _control_plane(node_path: Path) -> Plan:
    def command(incarnation: int, fds: dict[str, int]) -> list[str]:
        arguments = ["--node", str(node_path), "--incarnation", str(incarnation)]
        return [*python_module("controlplane"), *arguments, "--http-fd", str(fds["http"])]

    return Plan("control plane", command, ("http",))


def _backend(backend: Backend) -> Plan:
    def command(_incarnation: int, _fds: dict[str, int]) -> list[str]:
        return [*backend.command, backend.path]

    return Plan(
        f"backend {backend.name}", command, before_start=lambda: remove_stale_socket(backend.path)
    )


def _public(index: int, has_ipv6: bool) -> tuple[str, ...]:
    return (f"udp4.{index}", f"udp6.{index}") if has_ipv6 else (f"udp4.{index}",)


def _worker(module: str, node_path: Path, index: int, incarnation: int) -> list[str]:
    arguments = ["--node", str(node_path), "--index", str(index)]
    return [*python_module(module), *arguments, "--incarnation", str(incarnation)]


def remove_stale_socket(path: str) -> None:
    """A killed backend leaves its socket file, on which its successor could not
    bind. One that somebody still listens on stays."""
    with suppress(OSError):
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
