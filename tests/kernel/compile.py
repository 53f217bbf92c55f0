"""Builds small C programs of the tests with the kernel's own sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

import dataplane.kernel
from dataplane.kernel import build

KERNEL = Path(dataplane.kernel.__file__).parent
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compile_program(target: Path, sources: list[Path], kernel: list[str], *flags: str) -> Path:
    """``sources`` and the kernel's files of those names into ``target``."""
    command = ["gcc", *build.C_FLAGS, *flags, f"-I{KERNEL}", "-o", str(target)]
    command += [str(path) for path in sources] + [str(KERNEL / name) for name in kernel]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return target
