"""How the harness turns samples into figures and figures into reports."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from bench.cpu import MachineTime, cpu_ns, resident_bytes
from bench.report import describe_host, host_line, table, write_json
from bench.rounds import alternate, median, percentile


def test_rounds_alternate_and_the_first_is_dropped() -> None:
    order: list[str] = []

    def system(name: str) -> int:
        order.append(name)
        return len(order)

    series = alternate({"a": lambda: system("a"), "b": lambda: system("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert series["a"].samples == [3, 5]
    assert series["b"].samples == [4, 6]


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_figures_of_nothing_are_holes() -> None:
    assert math.isnan(median([]))
    assert math.isnan(percentile([], 50))


def test_steal_and_busy_are_shares_of_all_ticks() -> None:
    earlier = MachineTime(total=100, idle=50, steal=10)
    later = MachineTime(total=200, idle=100, steal=20)
    assert later.shares_since(earlier) == (0.4, 0.1)


def test_cpu_time_counts_what_this_process_spends() -> None:
    before = cpu_ns(os.getpid())
    spent = os.times()
    while os.times().user + os.times().system - spent.user - spent.system < 0.05:
        sum(range(1000))
    assert cpu_ns(os.getpid()) - before >= 30_000_000
    assert resident_bytes(os.getpid()) > 1 << 20


def test_cpu_time_of_a_process_that_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        cpu_ns(pid)


def test_a_table_aligns_and_shows_holes() -> None:
    text = table("Cost", ["system", "µs", "n"], [["a", 1.2345, 10000], ["bb", None, 2]])
    assert text.splitlines() == [
        "### Cost",
        "",
        "| system |   µs |      n |",
        "|--------|-----:|-------:|",
        "| a      | 1.23 | 10,000 |",
        "| bb     |    – |      2 |",
    ]


def test_a_report_describes_the_host_without_naming_it(tmp_path: Path) -> None:
    host = describe_host()
    assert {"cpu", "cpus", "kernel", "python", "libopus", "packages"} <= host.keys()
    assert host["kernel"] in host_line(host)
    text = json.dumps(host)
    assert os.uname().nodename not in text.split('"')
    assert str(Path.cwd()) not in text
    write_json(tmp_path / "report.json", {"host": host})
    assert json.loads((tmp_path / "report.json").read_text())["host"] == host
    assert os.listdir(tmp_path) == ["report.json"]
