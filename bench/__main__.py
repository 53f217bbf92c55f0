"""``earshot bench``: measures Earshot beside what one would use without it."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.first import FULL, QUICK, render, run_first
from bench.native import NoCompiler
from bench.node import StartError
from bench.relay_rig import RigError
from bench.report import write_json


class ProgressLine:
    """Says on stderr what is being measured: one line that changes on a terminal, else lines
    when the subject changes at most once a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._said = float("-inf")
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        line = f"[{now - self._started:5.0f} s] {text}"
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._said >= 1:
            self._said = now
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Makes room for the report."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``earshot bench``."""
    parser = argparse.ArgumentParser(prog="earshot bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    first = benchmarks.add_parser(
        "first", help="forwarding cost, calls per core, POST-to-first-audio time (about 4 minutes)"
    )
    first.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    first.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes; the figures mean nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a benchmark, prints its tables, writes its JSON. Returns the exit status."""
    arguments = build_parser().parse_args(argv)
    # As Ctrl-C: what was started is stopped, what was made is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = ProgressLine()
    try:
        report = run_first(QUICK if arguments.quick else FULL, progress)
    except (NoCompiler, RigError, StartError) as error:
        progress.clear()
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.clear()
        print("earshot bench: interrupted", file=sys.stderr)
        return 130
    progress.clear()
    print(render(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
