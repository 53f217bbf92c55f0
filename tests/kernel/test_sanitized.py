"""The kernel under AddressSanitizer and UndefinedBehaviorSanitizer, and its
parsers with their input flush against unmapped pages.

The parsers run as the fuzz targets do, on their seeds, every prefix of those
and mutations from a fixed seed; the rest runs through its own tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import make_corpus
from tests.kernel.compile import SANITIZE, compile_program

FUZZ = Path(make_corpus.__file__).parent
ROUNDS = 20_000
PARTS = {
    "stun_peek": ["stun_peek.c", "siphash.c", "demux.c"],
    "hop": ["hop.c"],
    "flow_table": ["flow_table.c", "siphash.c", "region.c"],
}


@pytest.mark.parametrize("flags", [(), SANITIZE], ids=["unmapped pages", "sanitizers"])
@pytest.mark.parametrize("target", PARTS)
def test_fuzz_target(tmp_path: Path, target: str, flags: tuple[str, ...]) -> None:
    sources = [FUZZ / f"fuzz_{target}.c", FUZZ / "driver.c"]
    program = compile_program(tmp_path / target, sources, PARTS[target], *flags)
    seeds = sorted(str(path) for path in (FUZZ / "corpus" / target).iterdir())
    rounds = ROUNDS // 10 if target == "flow_table" else ROUNDS
    command = [str(program), str(rounds), *seeds]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > rounds * len(seeds)


def test_seeds_are_those_of_the_script() -> None:
    """Regressions may stand beside them; the seeds themselves are generated."""
    seeds = {
        "stun_peek": make_corpus.stun_seeds(),
        "hop": make_corpus.hop_seeds(),
        "flow_table": make_corpus.flow_seeds(),
    }
    for target, files in seeds.items():
        for name, data in files.items():
            assert (FUZZ / "corpus" / target / name).read_bytes() == data


def test_relay_and_tables_under_sanitizers(tmp_path: Path) -> None:
    """A sanitized build of the extension beside the real one, and the tests that
    drive sockets and shared memory once more on it."""
    root = FUZZ.parent.parent
    environment = {**os.environ, "EARSHOT_SANITIZE": "1"}
    command = [sys.executable, "dataplane/kernel/build.py", str(tmp_path)]
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    libasan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment |= {
        "LD_PRELOAD": libasan,
        "ASAN_OPTIONS": "detect_leaks=0",
        "EARSHOT_TEST_KERNEL": str(next(tmp_path.glob("*.so"))),
    }
    names = ("relay", "relay_refusals", "relay_loop", "tables", "flow_table")
    tests = [f"tests/kernel/test_{name}.py" for name in names]
    plugins = ["-p", "tests.kernel.other_kernel", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, *tests]
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"kernel: {tmp_path}" in result.stdout
