"""Alternated rounds: A B C, A B C, …; the first dropped, rounds with steal discarded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bench.cpu import MachineTime

# Above this share of the machine taken by its host, a round says nothing.
STEAL_LIMIT = 0.01

T = TypeVar("T")


@dataclass
class Series(Generic[T]):
    """What one system's rounds gave."""

    samples: list[T] = field(default_factory=list)
    discarded: int = 0
    """Rounds left out because of steal."""


def alternate(
    systems: Mapping[str, Callable[[], T]],
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Series[T]]:
    """Runs every system once per round, in turn, and drops the first round.

    rounds: how many count; one more is run. When steal spoilt every round of a
    system, they are kept all the same: a figure that Series.discarded shows to
    be bad beats a hole.
    """
    series: dict[str, Series[T]] = {name: Series() for name in systems}
    stolen: dict[str, list[T]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name, run in systems.items():
            progress(f"round {number}/{rounds} {name}")
            before = MachineTime.now()
            sample = run()
            _busy, steal = MachineTime.now().shares_since(before)
            if number == 0:
                continue
            if steal > STEAL_LIMIT:
                series[name].discarded += 1
                stolen[name].append(sample)
            else:
                series[name].samples.append(sample)
    for name, result in series.items():
        if not result.samples:
            result.samples = stolen[name]
    return series


def median(values: list[float]) -> float:
    """The median; nan of nothing, so that a report shows a hole and goes on."""
    return statistics.median(values) if values else float("nan")


def percentile(values: list[float], percent: float) -> float:
    """Nearest-rank percentile; nan of nothing."""
    if not values:
        return float("nan")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(0, rank - 1)]
