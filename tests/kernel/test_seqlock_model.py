"""docs/models/seqlock.pml, checked exhaustively: the protocol of the session rows
is right under weak memory, and each of its fences is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "docs" / "models" / "seqlock.pml"
NEEDED = [
    "NO_RELEASE_FENCE",
    "NO_ACQUIRE_FENCE",
    "NO_ACQUIRE_LOAD",
    "NO_RELEASE_END",
    "NO_GENERATION_MARK",
]

pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None, reason="the model checker spin is not installed (apt)"
)


def errors(directory: Path, *defines: str) -> int:
    flags = [f"-D{define}" for define in defines]
    subprocess.run(["spin", *flags, "-a", MODEL], cwd=directory, check=True, capture_output=True)
    subprocess.run(["gcc", "-O2", "-w", "-o", "pan", "pan.c"], cwd=directory, check=True)
    result = subprocess.run(
        ["./pan", "-m100000"], cwd=directory, check=True, capture_output=True, text=True
    )
    assert "max search depth too small" not in result.stdout
    found = re.search(r"errors: (\d+)", result.stdout)
    assert found
    return int(found[1])


def test_no_torn_row_and_nobody_stuck(tmp_path: Path) -> None:
    assert errors(tmp_path) == 0


@pytest.mark.parametrize("left_out", NEEDED)
def test_every_part_is_needed(tmp_path: Path, left_out: str) -> None:
    assert errors(tmp_path, "LAST=2", "KILLS=1", left_out) == 1
