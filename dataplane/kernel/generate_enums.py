"""Writes ``dataplane/shm/enums.py`` from the enums of ``layout.h``.

Run after layout.h changed: ``python -m dataplane.kernel.generate_enums``. The
file is committed so that type checkers see its members; a test compares it.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "shm" / "enums.py"

# C enum → (Python class, base, what it is)
CLASSES = {
    "ek_region_kind": ("RegionKind", "IntEnum", "What a shared segment holds."),
    "ek_worker_kind": ("WorkerKind", "IntEnum", "Which process a worker row is of."),
    "ek_session_state": ("SessionState", "IntEnum", "What the control plane says of a slot."),
    "ek_call_state": ("CallState", "IntEnum", "What the transceiver says of a call."),
    "ek_end_reason": ("EndReason", "IntEnum", "Why a call ended."),
    "ek_backend_state": ("BackendState", "IntEnum", "How the call's backend fares."),
    "ek_transport": ("Transport", "IntEnum", "How a client reaches us."),
    "ek_fingerprint_algorithm": (
        "FingerprintAlgorithm",
        "IntEnum",
        "Hash of the client's certificate fingerprint (RFC 8122).",
    ),
    "ek_codec": ("Codec", "IntEnum", "The audio codec agreed on."),
    "ek_hop_flags": ("HopFlag", "IntFlag", "Record flags on the hop."),
    "ek_demux": ("Demux", "IntEnum", "A datagram's protocol by its first byte (RFC 7983)."),
    "ek_counter": ("Counter", "IntEnum", "Every counter; a metric's name is the lower case."),
}

HEAD = '''"""The kernel's enums in Python. Generated from layout.h by
dataplane.kernel.generate_enums; do not edit."""

from __future__ import annotations

from enum import IntEnum, IntFlag
'''


def enums_source() -> str:
    """The text of enums.py."""
    ffi = FFI()
    ffi.cdef((HERE / "layout.h").read_text())
    parts = [HEAD]
    for c_name, (name, base, doc) in CLASSES.items():
        members = ffi.typeof(f"enum {c_name}").relements
        prefix = _common_prefix(list(members))
        lines = [f"\n\nclass {name}({base}):\n", f'    """{doc}"""\n\n']
        lines += [
            f"    {member.removeprefix(prefix)} = {value}\n"
            for member, value in sorted(members.items(), key=lambda item: item[1])
        ]
        parts += lines
    return "".join(parts)


def _common_prefix(names: list[str]) -> str:
    """``EK_CALL_`` of its members: two words, and so for every enum."""
    first = names[0].split("_")
    return "_".join(first[:2]) + "_"


if __name__ == "__main__":
    TARGET.write_text(enums_source())
