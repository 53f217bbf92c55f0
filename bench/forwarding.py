"""What a forwarded datagram costs: Earshot's relay beside two plain forwarders.

All three run on the same load: voice-sized datagrams from many client
addresses through one public socket, on to one receiver that counts them. Only
the forwarder's own CPU time is counted, and it is divided by what arrived, so
that dropping makes nobody cheap. Earshot's relay worker stands alone here,
with a sink in the transceiver's place, but runs the code and tables that it
runs in a node, and its flows were authenticated by real STUN checks.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.cpu import cpu_ns
from bench.flows import Sink, blast, open_flows, receiving_socket
from bench.relay_rig import run_relay
from bench.rounds import Series, alternate, median

# A 20 ms Opus packet at 32 kb/s with RTP header and SRTP tag.
DATAGRAM_BYTES = 110


@dataclass(frozen=True)
class Forwarder:
    """A forwarder in its place: who sends to it and who counts behind it."""

    pid: int
    flows: Sequence[socket.socket]
    sink: Sink


@dataclass(frozen=True)
class Sample:
    """One round of one forwarder."""

    sent: int
    delivered: int
    cpu_us_per_datagram: float
    cpu_share: float
    """Of one core."""
    datagrams_out: int
    """What the forwarder itself sent: fewer than delivered when it coalesces."""

    @property
    def delivered_share(self) -> float:
        return self.delivered / max(1, self.sent)

    @property
    def packets_per_send(self) -> float:
        return self.delivered / max(1, self.datagrams_out)


@contextlib.contextmanager
def run_plain(
    command: Sequence[str], programs: Mapping[str, Path], flow_count: int
) -> Iterator[Forwarder]:
    """A forwarder that gets two descriptors: where to receive, and connected to the sink."""
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(contextlib.closing(Sink(programs["sink"], hop=False)))
        receive = stack.enter_context(receiving_socket())
        send = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        send.connect(sink.address)
        fds = (receive.fileno(), send.fileno())
        process = subprocess.Popen([*command, *map(str, fds)], pass_fds=fds)
        stack.callback(process.wait)
        stack.callback(process.kill)
        flows = stack.enter_context(open_flows(flow_count, *receive.getsockname()))
        yield Forwarder(process.pid, flows, sink)


@contextlib.contextmanager
def run_all(programs: Mapping[str, Path], flow_count: int) -> Iterator[dict[str, Forwarder]]:
    """The three forwarders, started and idle."""
    script = Path(__file__).parent / "peers" / "python_forwarder.py"
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(contextlib.closing(Sink(programs["sink"], hop=True)))
        relay = stack.enter_context(run_relay(sink, flow_count))
        null_command = [str(programs["null_forwarder"])]
        python_command = [sys.executable, str(script)]
        yield {
            "earshot relay": Forwarder(relay.pid, relay.flows, sink),
            "null forwarder (C)": stack.enter_context(
                run_plain(null_command, programs, flow_count)
            ),
            "plain Python": stack.enter_context(run_plain(python_command, programs, flow_count)),
        }


def run_load(forwarder: Forwarder, program: Path, rate: int, seconds: float) -> Sample:
    """One round: so many datagrams a second (0: as fast as possible) for so long."""
    out_before, delivered_before = forwarder.sink.settled()
    cpu_before = cpu_ns(forwarder.pid)
    load = blast(program, forwarder.flows, rate, seconds, DATAGRAM_BYTES)
    out, delivered = forwarder.sink.settled()
    spent_ns = cpu_ns(forwarder.pid) - cpu_before
    delivered -= delivered_before
    return Sample(
        sent=load.sent,
        delivered=delivered,
        cpu_us_per_datagram=spent_ns / 1e3 / max(1, delivered),
        cpu_share=spent_ns / 1e9 / load.seconds,
        datagrams_out=out - out_before,
    )


def compare(
    programs: Mapping[str, Path],
    *,
    rates: Sequence[int],
    rounds: int,
    seconds: float,
    flow_count: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Alternated rounds at every rate. Returns the report's part."""
    levels = []
    with run_all(programs, flow_count) as forwarders:
        for rate in rates:
            name = f"{rate:,} a second" if rate else "full load"

            def say(text: str, name: str = name) -> None:
                progress(f"forwarding, {name}: {text}")

            runs = {
                who: partial(run_load, forwarder, programs["blast"], rate, seconds)
                for who, forwarder in forwarders.items()
            }
            series = alternate(runs, rounds, say)
            levels.append({"rate": rate, "systems": _summarize(series)})
    return {"datagram_bytes": DATAGRAM_BYTES, "flows": flow_count, "levels": levels}


def _summarize(series: Mapping[str, Series[Sample]]) -> dict[str, Any]:
    """Medians per system, and each as a ratio of the null forwarder's."""
    cost = {
        who: median([sample.cpu_us_per_datagram for sample in one.samples])
        for who, one in series.items()
    }
    return {
        who: {
            "cpu_us_per_datagram": cost[who],
            "of_null_forwarder": cost[who] / cost["null forwarder (C)"],
            "delivered_share": median([s.delivered_share for s in one.samples]),
            "delivered_per_cpu_second": 1e6 / cost[who],
            "packets_per_send": median([s.packets_per_send for s in one.samples]),
            "cpu_share": median([s.cpu_share for s in one.samples]),
            "rounds": [asdict(sample) for sample in one.samples],
            "rounds_discarded_for_steal": one.discarded,
        }
        for who, one in series.items()
    }
