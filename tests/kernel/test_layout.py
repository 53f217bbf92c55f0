"""One description of shared memory: what Python holds of it is what C compiles.

kernel.h asserts every size and offset when it is compiled; here is what the
compiler cannot see.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import dataplane.kernel
import dataplane.shm
from dataplane.kernel import _kernel, binding, build, generate_enums
from dataplane.shm.enums import Counter, RegionKind
from dataplane.shm.flows import Install
from dataplane.shm.sessions import SessionConfig
from dataplane.shm.status import Status

KERNEL = Path(dataplane.kernel.__file__).parent
SOURCES = sorted(KERNEL.glob("*.c"))


def test_enums_are_those_of_layout_h() -> None:
    path = Path(dataplane.shm.__file__).parent / "enums.py"
    assert path.read_text() == generate_enums.enums_source()


def test_install_is_the_kernels() -> None:
    members = _kernel.ffi.typeof("enum ek_install").relements
    assert {f"EK_INSTALL_{m.name}": int(m) for m in Install} == members


def test_row_sizes() -> None:
    sizes = {kind: binding.row_bytes(kind) for kind in RegionKind}
    assert sizes == {
        RegionKind.SESSIONS: 16384,
        RegionKind.STATUS: 512,
        RegionKind.FLOWS: 64,
        RegionKind.ROUTES: 32,
        RegionKind.WORKERS: 832,
    }
    assert binding.HEADER_BYTES == 64


def test_every_counter_has_its_slot() -> None:
    assert max(Counter) < binding.COUNTER_SLOTS
    assert len(set(Counter)) == len(_kernel.ffi.typeof("enum ek_counter").relements)


def struct_fields(name: str) -> set[str]:
    fields = {field for field, _ in _kernel.ffi.typeof(name).fields}
    return {field for field in fields if not field.startswith("reserved")}


def test_session_config_has_every_field() -> None:
    derived = {"options"}
    length_of_options = {"options_bytes"}
    ours = set(SessionConfig.__slots__) - derived
    assert ours == struct_fields("struct ek_session_config") - length_of_options


def test_status_has_every_field() -> None:
    assert set(Status.__slots__) == struct_fields("struct ek_status")


def test_build_lists_every_source() -> None:
    assert sorted(build.SOURCES) == [path.name for path in SOURCES]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_compiles_without_a_warning(path: Path) -> None:
    """Also with -Wpedantic, which the build gives through a pragma only."""
    command = ["gcc", *build.C_FLAGS, "-Wpedantic", "-fsyntax-only", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_house_rules_of_c() -> None:
    for path in [*SOURCES, *KERNEL.glob("*.h")]:
        lines = path.read_text().splitlines()
        limit = 400 if path.name == "layout.h" else 300
        assert len(lines) <= limit, path.name
        start = 0
        for number, line in enumerate(lines):
            if line == "{":
                start = number
            if line == "}":
                assert number - start <= 60, f"{path.name}:{start}"
