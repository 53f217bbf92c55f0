"""flow_table.c: install, move, evict, collide, and read from another mapping."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.kernel import _kernel, binding
from dataplane.shm.enums import RegionKind
from dataplane.shm.flows import Flow, FlowTable, Install
from dataplane.shm.names import SegmentNames
from dataplane.shm.segment import Segment
from tests.kernel.tables import TestTables

WAYS = _kernel.lib.EK_FLOW_WAYS
V4 = bytes(10) + b"\xff\xff"


def flow(port: int, last_seen_ns: int = 1, **values: object) -> Flow:
    made = Flow((V4 + b"\x7f\0\0\1", port, 1), V4 + b"\x7f\0\0\2", 1, 2, 3, 4, last_seen_ns)
    return replace(made, **values)  # type: ignore[arg-type]


def bucket_of(table: FlowTable, client: tuple[bytes, int, int]) -> int:
    ip, port, transport = client
    data = ip + port.to_bytes(2, "little") + bytes([transport])
    return binding.siphash24(table.region.boot_id, data) % (table.row_count // WAYS)


def same_bucket(table: FlowTable) -> Iterator[int]:
    """Ports whose flows share the bucket of port 0's."""
    wanted = bucket_of(table, flow(0).client)
    return (port for port in range(65536) if bucket_of(table, flow(port).client) == wanted)


def test_install_and_lookup(tables: TestTables) -> None:
    table = tables.flows()
    assert table.lookup(flow(5).client) is None
    assert table.install(flow(5)) is Install.NEW
    assert table.lookup(flow(5).client) == flow(5)
    assert list(table.items()) == [flow(5)]


def test_move_to_another_session(tables: TestTables) -> None:
    table = tables.flows()
    table.install(flow(5))
    moved = flow(5, slot=9, generation=10, worker=11, node_id=12, last_seen_ns=13)
    assert table.install(moved) is Install.MOVED
    assert list(table.items()) == [moved]


@pytest.mark.parametrize(
    "other",
    [(V4 + b"\x7f\0\0\1", 6, 1), (V4 + b"\x7f\0\0\1", 5, 2), (V4 + b"\x7f\0\0\3", 5, 1)],
    ids=["port", "transport", "ip"],
)
def test_every_part_of_the_address_counts(
    tables: TestTables, other: tuple[bytes, int, int]
) -> None:
    table = tables.flows()
    table.install(flow(5))
    assert table.lookup(other) is None
    assert table.install(flow(0, client=other)) is Install.NEW
    assert {f.client for f in table.items()} == {flow(5).client, other}


def test_collisions_fill_the_bucket_then_the_oldest_goes(tables: TestTables) -> None:
    table = tables.flows(rows=1024)
    ports = list(itertools.islice(same_bucket(table), WAYS + 2))
    ages = dict(zip(ports, [50, 30, 10, 20, 60, 40, 80, 70], strict=False))
    for port, age in ages.items():
        assert table.install(flow(port, age)) is Install.NEW
    assert all(table.lookup(flow(port).client) for port in ages)

    assert table.install(flow(ports[WAYS], 90)) is Install.EVICTED
    assert table.lookup(flow(ports[2]).client) is None  # seen at 10
    assert table.install(flow(ports[WAYS + 1], 91)) is Install.EVICTED
    assert table.lookup(flow(ports[3]).client) is None  # seen at 20
    assert len(list(table.items())) == WAYS


def test_a_full_table_evicts_only_inside_its_buckets(tables: TestTables) -> None:
    table = tables.flows(rows=64)
    results = [table.install(flow(port, port)) for port in range(1, 1001)]
    assert results.count(Install.NEW) == 64
    assert results.count(Install.EVICTED) == 1000 - 64
    survivors = {f.client[1] for f in table.items()}
    by_bucket: dict[int, list[int]] = {}
    for port in range(1, 1001):
        by_bucket.setdefault(bucket_of(table, flow(port).client), []).append(port)
    assert survivors == {p for ports in by_bucket.values() for p in ports[-WAYS:]}


def test_count_live(tables: TestTables) -> None:
    table = tables.flows()
    for port in range(1, 11):
        table.install(flow(port, last_seen_ns=port))
    assert table.count_live(0) == 10
    assert table.count_live(8) == 3
    assert table.count_live(11) == 0


def test_another_process_reads_it(tables: TestTables) -> None:
    table = tables.flows()
    table.install(flow(5))
    segment = Segment.attach(
        table.segment.name,
        RegionKind.FLOWS,
        tables.boot_id,
        writable=False,  # type: ignore[attr-defined]
    )
    reader = FlowTable(segment)
    assert reader.lookup(flow(5).client) == flow(5)
    with pytest.raises(PermissionError):
        reader.install(flow(6))


def row_of(table: FlowTable, port: int) -> int:
    return next(
        i
        for i in range(table.row_count)
        if (row := binding.flow_read(table.region, i)) and row.client_port == port
    )


def test_a_row_left_odd_is_skipped_then_recovered(tables: TestTables) -> None:
    """A relay killed inside an install: others do not wait, its successor frees
    the row, and the flows behind it in the bucket are still found."""
    table = tables.flows(rows=1024)
    ports = list(itertools.islice(same_bucket(table), 3))
    for port in ports:
        table.install(flow(port))
    table.region.row(row_of(table, ports[0])).sequence += 1

    assert table.lookup(flow(ports[0]).client) is None
    assert table.lookup(flow(ports[1]).client) == flow(ports[1])
    assert table.recover() == 1
    assert table.recover() == 0
    assert table.lookup(flow(ports[0]).client) is None
    assert [table.lookup(flow(port).client) for port in ports[1:]] == [
        flow(port) for port in ports[1:]
    ]
    assert table.install(flow(ports[0])) is Install.NEW


@pytest.mark.parametrize("rows", [0, 4, 63, 100])
def test_row_counts_that_make_no_buckets(tables: TestTables, rows: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        tables.flows(rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=60))
def test_as_a_dictionary(tables: TestTables, installs: list[tuple[int, int]]) -> None:
    """In a table with room, what is looked up is what was installed last."""
    fresh = TestTables(SegmentNames(f"test.{secrets.token_hex(8)}"), tables.boot_id, tables.make)
    table = fresh.flows(rows=4096)
    model: dict[int, Flow] = {}
    for port, slot in installs:
        result = table.install(flow(port, slot=slot))
        assert result is (Install.MOVED if port in model else Install.NEW)
        model[port] = flow(port, slot=slot)
    assert {f.client[1]: f for f in table.items()} == model
    for port in range(41):
        assert table.lookup(flow(port).client) == model.get(port)
