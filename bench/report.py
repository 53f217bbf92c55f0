"""Tables for people, JSON for machines, and what the figures were measured on."""

from __future__ import annotations

import json
import os
import platform
import re
import ssl
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("aiohttp", "aiortc", "av", "cffi", "cryptography", "pylibsrtp", "pyOpenSSL")


def describe_host() -> dict[str, Any]:
    """The machine and the versions that matter, without its name or paths."""
    from bench.speech import libopus_version

    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "hypervisor": _hypervisor(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "libopus": libopus_version(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "earshot": _package_version("earshot"),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else "unknown"


def _hypervisor() -> bool:
    try:
        return " hypervisor" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "from source"


def host_line(host: dict[str, Any]) -> str:
    """One line for above a table."""
    virtual = ", virtual" if host["hypervisor"] else ""
    return (
        f"{host['cpu']} ({host['cpus']} CPUs{virtual}), Linux {host['kernel']}, "
        f"Python {host['python']}, libopus {host['libopus']}"
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table that also reads well in a terminal; numbers to the right."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if is_right else "-")
        for width, is_right in zip(widths, right, strict=True)
    )
    return "\n".join([f"### {title}", "", line(header), rule + "|", *map(line, cells)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or value is None


def _text(value: object) -> str:
    """Three significant digits for floats below 100, none after the point above; – for holes."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Atomically, so that a reader never meets half a report."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(report, indent=2, allow_nan=True) + "\n")
    part.replace(path)
