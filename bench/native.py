"""Builds the harness's small C programs, where a C compiler is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
SOURCES = {
    "null_forwarder": HERE / "peers" / "null_forwarder.c",
    "blast": HERE / "load" / "blast.c",
    "sink": HERE / "load" / "sink.c",
    "echo": HERE / "load" / "echo.c",
}


class NoCompiler(Exception):  # noqa: N818 - says what is missing
    """There is no cc on this machine."""


def build(directory: Path) -> dict[str, Path]:
    """Compiles every program into directory with cc -O2; name → executable.

    NoCompiler without cc; CalledProcessError when a source does not compile.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler("bench: cc is not installed (apt install gcc)")
    programs = {}
    for name, source in SOURCES.items():
        programs[name] = directory / name
        subprocess.run(
            [compiler, *FLAGS, "-o", str(programs[name]), str(source)],
            check=True,
        )
    return programs
