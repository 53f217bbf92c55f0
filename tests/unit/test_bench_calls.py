"""When a ramp calls a server full, and what it says of its capacity."""

from __future__ import annotations

import dataclasses

import pytest

from bench.calls import Step, summarize

SOUND = Step(
    calls=10,
    cpu_us_per_frame_pair=400.0,
    cpu_share=0.2,
    returned_share=1.0,
    late_share=0.0,
    load_late_share=0.0,
    resident_kib=70_000,
)


@pytest.mark.parametrize(
    "trouble",
    [{"late_share": 0.002}, {"cpu_share": 0.97}, {"returned_share": 0.9}],
    ids=lambda trouble: next(iter(trouble)),
)
def test_any_one_trouble_makes_a_step_overloaded(trouble: dict[str, float]) -> None:
    assert dataclasses.replace(SOUND, **trouble).overloaded  # type: ignore[arg-type]


def test_a_server_without_a_late_counter_can_be_sound() -> None:
    assert not dataclasses.replace(SOUND, late_share=None).overloaded


def test_capacity_is_that_of_the_busiest_sound_step() -> None:
    steps = [
        dataclasses.replace(SOUND, calls=1, cpu_us_per_frame_pair=900.0),
        SOUND,
        dataclasses.replace(SOUND, calls=50, late_share=0.5, cpu_us_per_frame_pair=300.0),
    ]
    summary = summarize(steps)
    assert summary["calls_per_core_extrapolated"] == pytest.approx(50.0)  # 1 s / 50 frames / 400 µs
    assert (summary["calls_carried"], summary["overloaded_at"]) == (10, 50)
    assert len(summary["steps"]) == 3


def test_a_server_that_carries_nothing_has_no_capacity() -> None:
    summary = summarize([dataclasses.replace(SOUND, calls=1, returned_share=0.0)])
    assert summary["calls_per_core_extrapolated"] is None
    assert (summary["calls_carried"], summary["overloaded_at"]) == (0, 1)
