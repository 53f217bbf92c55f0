"""Backends of a few lines, written in the test, run as processes.

The source is that of a handler for asyncio; struck of its `async` and `await`
it is one for threads, so that each test can try both.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.edge_side import BackendProcess, EdgeSide

KINDS = ("asyncio", "threads")
EXAMPLES = Path(__file__).parents[2] / "examples"
RATE = 16000
MS = RATE // 1000 * 2
"""Bytes of a millisecond, in tests where both rates are 16 kHz."""

PRELUDE = """
import asyncio, logging, sys, threading
sys.path.insert(0, {examples!r})
import earshot_backend as earshot
from earshot_backend import *

logging.basicConfig()

def report(call, **what):
    call.send_event(what)

def spawn_async(function):
    return asyncio.ensure_future(function())

def spawn_threads(function):
    threading.Thread(target=function, daemon=True).start()

spawn = spawn_{kind}
"""


def script_of(source: str, kind: str, path: Path) -> Path:
    source = textwrap.dedent(source)
    run = "run"
    if kind == "threads":
        source = re.sub(r"\basync |\bawait ", "", source)
        run = "run_threads"
    path.write_text(
        PRELUDE.format(examples=str(EXAMPLES), kind="async" if kind == "asyncio" else kind)
        + source
        + f"\nearshot.{run}(talk, sys.argv[-1], rate_in={RATE}, rate_out={RATE})\n"
    )
    return path


UTTERANCE = """
    async def talk(call):
        async def speak():
            async with call.utterance() as said:
                for _ in range(10):
                    await said.play(bytes(3200))
            report(call, type="said", samples=said.samples, heard=said.heard,
                   heard_ms=said.heard_ms, interrupted=said.interrupted)
        async for frame in call:
            if isinstance(frame, Event):
                if frame.data == "speak":
                    spawn(speak)
                elif frame.data == "clear":
                    call.clear()
"""
"""Speaks a second when it is told "speak", clears when told "clear", reports what was heard."""

Launch = Callable[[str], BackendProcess]
"""Takes the source of a handler `talk`."""


@contextmanager
def launching(kind: str, directory: Path) -> Iterator[Launch]:
    """Run handlers; at the end see that each of them ends in peace."""
    with ExitStack() as stack:
        started = []

        def start(source: str) -> BackendProcess:
            script = script_of(source, kind, directory / "backend.py")
            command = [sys.executable, "-W", "error", str(script)]
            process = stack.enter_context(BackendProcess(command, directory / "b.sock"))
            started.append(process)
            return process.await_listening()

        yield start
        for process in started:
            log = process.log.read_text()
            assert process.terminate() == 0, log
            assert "AssertionError" not in log, log
            assert not process.path.exists()


def connect(process: BackendProcess, room_ms: int | None = None) -> EdgeSide:
    edge = EdgeSide(process.path)
    edge.start()
    if room_ms is not None:
        edge.played(0, 0, 0, room_ms)
    return edge
