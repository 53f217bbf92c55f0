"""The first figures: forwarding, calls per core, time to the first audio."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import calls, forwarding, native, setups
from bench.node import run_aiortc_echo, run_earshot
from bench.report import describe_host, host_line, table
from bench.speech import voice_packets

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    rates: tuple[int, ...]
    rounds: int
    round_s: float
    flows: int
    earshot_calls: tuple[int, ...]
    aiortc_calls: tuple[int, ...]
    step_s: float
    set_ups: int
    speech_s: float


FULL = Scale(
    rates=(5_000, 50_000, 0),
    rounds=6,
    round_s=1.0,
    flows=100,
    earshot_calls=(1, 5, 10, 20, 30, 40, 50, 60, 80, 100, 120),
    aiortc_calls=(1, 4, 8, 12, 16, 20),
    step_s=4.0,
    set_ups=50,
    speech_s=12.0,
)
# Shows that everything runs; its figures mean nothing.
QUICK = Scale(
    rates=(2_000,),
    rounds=1,
    round_s=0.2,
    flows=4,
    earshot_calls=(1, 2),
    aiortc_calls=(1,),
    step_s=0.5,
    set_ups=2,
    speech_s=2.0,
)


def run_first(scale: Scale, progress: Progress) -> dict[str, Any]:
    """Measures everything and returns the report."""
    packets = voice_packets(scale.speech_s)
    with tempfile.TemporaryDirectory(prefix="earshot-bench-") as directory:
        programs = native.build(Path(directory))
        forwarded = forwarding.compare(
            programs,
            rates=scale.rates,
            rounds=scale.rounds,
            seconds=scale.round_s,
            flow_count=scale.flows,
            progress=progress,
        )
        carried, waited = _compare_servers(scale, packets, programs["echo"], progress)
    return {
        "benchmark": "first",
        "host": describe_host(),
        "forwarding": forwarded,
        "calls": carried,
        "set_up": waited,
    }


def _compare_servers(
    scale: Scale, packets: Sequence[bytes], echo: Path, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(calls, set-ups) of Earshot and of aiortc, on the same input."""
    carried = {}
    waited = {}
    for name, run_server, steps in (
        ("earshot", partial(run_earshot, echo=[str(echo)]), scale.earshot_calls),
        ("aiortc", run_aiortc_echo, scale.aiortc_calls),
    ):
        named = _prefixed(progress, name)
        with run_server() as server:
            times = asyncio.run(setups.set_ups(server, packets, scale.set_ups, named))
            waited[name] = setups.summarize(times)
        # A fresh server: what the set-ups left behind must not be in the figures.
        with run_server() as server:
            ramp = asyncio.run(calls.ramp(server, packets, steps, scale.step_s, named))
            carried[name] = calls.summarize(ramp)
    return carried, waited


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda text: progress(f"{prefix}: {text}")


def render(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    return "\n\n".join(
        [
            host_line(report["host"]),
            *(_forwarding_table(report["forwarding"], level) for level in _levels(report)),
            _calls_table(report["calls"]),
            _set_up_table(report["set_up"]),
        ]
    )


def _levels(report: dict[str, Any]) -> list[dict[str, Any]]:
    levels: list[dict[str, Any]] = report["forwarding"]["levels"]
    return levels


def _forwarding_table(forwarded: dict[str, Any], level: dict[str, Any]) -> str:
    load = f"{level['rate']:,} datagrams a second" if level["rate"] else "full load"
    return table(
        f"Forwarding, {load}, {forwarded['flows']} flows, {forwarded['datagram_bytes']} bytes",
        ["forwarder", "CPU µs/datagram", "× null", "delivered", "packets/send", "core"],
        [
            [
                who,
                one["cpu_us_per_datagram"],
                one["of_null_forwarder"],
                f"{one['delivered_share']:.1%}",
                one["packets_per_send"],
                f"{one['cpu_share']:.0%}",
            ]
            for who, one in level["systems"].items()
        ],
    )


def _calls_table(carried: dict[str, Any]) -> str:
    return table(
        "Echo calls, Opus decoded and encoded",
        ["server", "CPU µs/frame pair", "calls/core (from CPU)", "carried", "overloaded at"],
        [
            [
                who,
                one["cpu_us_per_frame_pair"],
                one["calls_per_core_extrapolated"],
                one["calls_carried"],
                one["overloaded_at"],
            ]
            for who, one in carried.items()
        ],
    )


def _set_up_table(waited: dict[str, Any]) -> str:
    header = ["server", "n"]
    for step in setups.STEPS:
        header += [f"{step.replace('_', ' ')} p50", "p99"]
    rows = []
    for who, one in waited.items():
        row: list[object] = [who, one["count"]]
        for step in setups.STEPS:
            row += [one[f"{step}_ms"]["p50"], one[f"{step}_ms"]["p99"]]
        rows.append(row)
    return table("Set-up, ms since the POST began", header, rows)
