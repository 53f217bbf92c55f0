"""Build the C kernel into ``dataplane.kernel._kernel`` (cffi API mode, abi3).

setuptools takes ``ffibuilder`` (setup.py). Run as a script,
this file builds in place; ``EARSHOT_SANITIZE=1`` makes that the variant with
AddressSanitizer and UndefinedBehaviorSanitizer (run Python with
``LD_PRELOAD=$(gcc -print-file-name=libasan.so)``).
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

MODULE = "dataplane.kernel._kernel"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOURCES = (
    "demux.c",
    "flow_table.c",
    "hop.c",
    "pidfd.c",
    "region.c",
    "relay.c",
    "relay_rx.c",
    "relay_setup.c",
    "relay_tx.c",
    "route_table.c",
    "session_table.c",
    "siphash.c",
    "status_table.c",
    "stun_peek.c",
    "worker_table.c",
)
C_FLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Werror",
)
SANITIZE_FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")

# cffi's generated file is compiled with our flags and cannot meet all of them.
# Python's own headers stay quiet as system headers. -Wpedantic is kernel.h's: it
# strikes macros that cffi defines before any text of ours.
SPARE_GENERATED = """
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wcast-function-type"
"""


def make_ffibuilder(root: str = "") -> FFI:
    """The builder; ``root`` stands before the sources' paths (setuptools wants
    them relative to the project)."""
    kernel = os.path.join(root, "dataplane", "kernel")
    extra = SANITIZE_FLAGS if os.environ.get("EARSHOT_SANITIZE") == "1" else ()
    builder = FFI()
    builder.cdef((HERE / "layout.h").read_text())
    builder.cdef((HERE / "api.h").read_text())
    builder.set_source(
        MODULE,
        '#include "kernel.h"\n' + SPARE_GENERATED,
        sources=[os.path.join(kernel, name) for name in SOURCES],
        depends=[os.path.join(kernel, path.name) for path in sorted(HERE.glob("*.h"))],
        include_dirs=[kernel],
        extra_compile_args=[*C_FLAGS, *extra, "-isystem", sysconfig.get_paths()["include"]],
        extra_link_args=list(extra),
        py_limited_api=True,
    )
    return builder


def build_into(directory: Path) -> Path:
    """Compile in a scratch directory, then put the module into this one in one
    step: processes that run the old one keep it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="earshot-kernel-") as scratch:
        built = Path(make_ffibuilder(str(ROOT)).compile(tmpdir=scratch))
        target = directory / built.name
        staged = directory / f".{built.name}.{os.getpid()}"
        staged.write_bytes(built.read_bytes())
        staged.chmod(0o755)
        os.replace(staged, target)
    return target


ffibuilder = make_ffibuilder()

if __name__ == "__main__":
    print(build_into(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))
