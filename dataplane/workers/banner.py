"""What an operator reads when a node is up."""

from __future__ import annotations

import ipaddress
import shlex

from dataplane.launch import version
from dataplane.node import NodeState


def talk_url(node: NodeState) -> str:
    """Where a browser on this machine, or beyond, finds the talk page."""
    host = node.config.http[0]
    if ipaddress.ip_address(host).is_unspecified:
        wanted = ipaddress.ip_address(host).version
        usable = [item for item in node.config.advertise if _version(item) == wanted]
        host = usable[0] if usable else host
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{node.http_port}/"


def banner(node: NodeState, adopted: bool) -> str:
    config = node.config
    lines = [
        f"Earshot {version()} is up" + (" (took over the running calls)" if adopted else ""),
        "",
        f"  Talk        {talk_url(node)}",
        f"  Media       UDP port {node.udp_port},"
        f" {_count(config.relays, 'relay')}, {_count(config.transceivers, 'transceiver')}",
        f"  Advertised  {', '.join(config.advertise)}",
    ]
    label = "Backends"
    for backend in config.backends:
        what = shlex.join(backend.command) if backend.command else "listens"
        lines.append(f"  {label:<10}  {backend.name}: {what} {backend.path}")
        label = ""
    if not config.backends:
        lines.append("  Backends    none yet: add --backend NAME=/path.sock")
    lines.append(f"  Run dir     {config.run_dir}")
    if not ipaddress.ip_address(config.http[0]).is_loopback:
        lines.append("")
        lines.append("  Browsers give the microphone to https and to localhost only:")
        lines.append("  put a TLS proxy before the HTTP port (docs/operations.md).")
    return "\n".join(["", *(f"  {line}" if line else "" for line in lines), ""])


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
