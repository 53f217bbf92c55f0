"""Readers against a busy writer, and a writer killed at random points: no torn
row, nobody stuck, and a successor finds a table that it can go on with."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from dataplane.shm.enums import RegionKind, SessionState
from dataplane.shm.segment import Segment
from dataplane.shm.sessions import Ident, SessionConfig, SessionTable
from tests.kernel.compile import compile_program
from tests.kernel.tables import TestTables, config

SOURCES = ["session_table.c", "status_table.c", "flow_table.c", "route_table.c"]


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("torture") / "torture"
    source = Path(__file__).parent / "torture.c"
    return compile_program(target, [source], [*SOURCES, "region.c", "siphash.c"])


@pytest.mark.parametrize("mode", ["sessions", "status", "flows", "routes"])
def test_rows_at_full_speed(torture: Path, mode: str) -> None:
    command = [str(torture), mode, "100", "20261122"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 0, result.stderr + result.stdout
    seen = json.loads(result.stdout)
    assert seen["torn"] == 0
    assert seen["writes"] > 1000
    assert seen["reads"] > 1000
    if mode in ("sessions", "status"):  # long rows: some kills struck inside a write
        assert seen["odd"] > 0


# --- the same through the Python tables, attached by name as workers attach

ROWS = 4


def pattern(generation: int) -> SessionConfig:
    fill = generation & 0xFF
    return config(
        generation,
        remote_fingerprint=bytes([fill]) * 32,
        remote_ufrag="u" * fill,
        created_unix_ns=generation,
        options=bytes([fill]) * (generation * 37 % 5000),
    )


def attach(name: str, boot_id: bytes, writable: bool) -> SessionTable:
    return SessionTable(Segment.attach(name, RegionKind.SESSIONS, boot_id, writable))


def write_for_ever(name: str, boot_id: bytes) -> None:
    table = attach(name, boot_id, writable=True)
    for slot in range(ROWS):
        ident = table.ident(slot)
        assert table.read(slot) is not None or ident.state is SessionState.FREE
    while True:
        for slot in range(ROWS):
            generation = table.ident(slot).generation + 1
            ident = Ident(SessionState.OFFERED, slot, 0, generation)
            table.publish(slot, ident, pattern(generation))


def read_until(name: str, boot_id: bytes, stop: Event) -> None:
    table = attach(name, boot_id, writable=False)
    reads = 0
    while not stop.is_set() or not reads:
        for slot in range(ROWS):
            row = table.read(slot)
            if row:
                assert row[1] == pattern(row[0].generation)
                reads += 1


def test_python_tables_with_a_writer_killed(tables: TestTables) -> None:
    table = tables.sessions(ROWS)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    name = tables.names.sessions
    readers = [
        context.Process(target=read_until, args=(name, tables.boot_id, stop)) for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    choose = random.Random(7)
    for _ in range(4):
        before = table.ident(ROWS - 1).generation
        writer: SpawnProcess = context.Process(target=write_for_ever, args=(name, tables.boot_id))
        writer.start()
        deadline = time.monotonic() + 30
        while table.ident(ROWS - 1).generation == before:  # it writes
            assert writer.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(choose.random() / 100)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        recovered = table.recover()
        for slot in range(ROWS):
            row = table.read(slot)
            if row is None:
                assert slot in recovered
            else:
                assert row[1] == pattern(row[0].generation)
    stop.set()
    for reader in readers:
        reader.join(30)
        assert reader.exitcode == 0
