"""``earshot bench first --quick``: everything runs and the report is whole. No figure is judged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.node import ROOT


def test_the_first_figures_come_as_tables_and_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "first.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "first", "--quick", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for title in ("### Forwarding", "### Echo calls", "### Set-up"):
        assert title in done.stdout
    assert "Traceback" not in done.stderr
    assert "earshot: set-up" in done.stderr  # progress
    report: dict[str, Any] = json.loads(path.read_text())
    (level,) = report["forwarding"]["levels"]
    assert level["systems"].keys() == {"earshot relay", "null forwarder (C)", "plain Python"}
    for system in level["systems"].values():
        assert system["delivered_share"] > 0
        assert math.isfinite(system["cpu_us_per_datagram"])
    for name in ("earshot", "aiortc"):
        assert report["calls"][name]["steps"][0]["cpu_us_per_frame_pair"] > 0
        assert report["set_up"][name]["count"] == 2
        assert report["set_up"][name]["first_audio_ms"]["p50"] > 0
    assert str(ROOT) not in path.read_text()
    assert os.uname().nodename not in report["host"].values()
