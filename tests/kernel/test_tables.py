"""Sessions, status, routes, workers and the segments under them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import cast

import pytest

from dataplane.kernel import binding
from dataplane.shm.enums import (
    CallState,
    Counter,
    EndReason,
    FingerprintAlgorithm,
    RegionKind,
    SessionState,
    WorkerKind,
)
from dataplane.shm.segment import Segment, ShmError, create_segment, unlink
from dataplane.shm.sessions import Ident, SessionConfig, SessionTable
from dataplane.shm.status import StatusTable
from dataplane.shm.workers import row_index
from tests.kernel.tables import TestTables, config, offered

V4_LOOPBACK = bytes(10) + b"\xff\xff\x7f\0\0\1"

# --- segments


def segment_of(table: SessionTable | StatusTable) -> Segment:
    return cast(Segment, table.segment)


def test_attach_refuses_what_it_did_not_expect(tables: TestTables) -> None:
    table = tables.sessions()
    name = segment_of(table).name

    def refused(kind: RegionKind, boot_id: bytes | str, words: str) -> None:
        with pytest.raises(ShmError, match=words) as caught:
            Segment.attach(name, kind, boot_id, writable=False)
        assert name in str(caught.value)

    refused(RegionKind.STATUS, tables.boot_id, "wanted status")
    refused(RegionKind.SESSIONS, bytes(16), "boot id .* of another start")
    header = table.region.header
    for field, words in (
        ("layout_version", "layout version 0"),
        ("row_bytes", "rows of 0 bytes"),
        ("magic", "magic differs"),
    ):
        value = getattr(header, field)
        setattr(header, field, 0)
        refused(RegionKind.SESSIONS, tables.boot_id, words)
        setattr(header, field, value)
    header.row_count += 1
    refused(RegionKind.SESSIONS, tables.boot_id, "its rows need")
    header.row_count -= 1
    Segment.attach(name, RegionKind.SESSIONS, tables.boot_id.hex(), writable=True).close()


def test_missing_existing_and_unlinked(tables: TestTables) -> None:
    with pytest.raises(ShmError, match="does not exist"):
        Segment.attach(tables.names.status, RegionKind.STATUS, tables.boot_id, writable=False)
    tables.status()
    with pytest.raises(ShmError, match="exists already"):
        tables.status()
    unlink(tables.names.status)
    unlink(tables.names.status)
    with pytest.raises(ShmError, match="does not exist"):
        Segment.attach(tables.names.status, RegionKind.STATUS, tables.boot_id, writable=False)


def test_rows_of_another_size_are_refused(tables: TestTables) -> None:
    with pytest.raises(ShmError, match="rows of 63 bytes"):
        create_segment(tables.names.flows(0), RegionKind.FLOWS, 64, 63, tables.boot_id)


def test_more_than_the_machine_has_is_refused(tables: TestTables) -> None:
    with pytest.raises(ShmError, match="/dev/shm has"):
        tables.sessions(rows=2**32 - 1)


def test_nobody_else_may_open_it(tables: TestTables) -> None:
    name = segment_of(tables.status()).name
    assert os.stat(f"/dev/shm{name}").st_mode & 0o777 == 0o600


def test_names(tables: TestTables) -> None:
    instance = tables.names.instance
    assert tables.names.all(2) == [
        f"/earshot.{instance}.{table}"
        for table in ("sessions", "status", "routes", "workers", "flows.0", "flows.1")
    ]


def test_readers_cannot_write(tables: TestTables) -> None:
    name = segment_of(tables.sessions()).name
    reader = SessionTable(Segment.attach(name, RegionKind.SESSIONS, tables.boot_id, writable=False))
    for act in (
        lambda: reader.publish(0, offered(1), config(1)),
        lambda: reader.set_state(0, SessionState.ENDED),
        lambda: reader.free(0),
        reader.recover,
    ):
        with pytest.raises(PermissionError):
            act()


def test_rows_outside_the_table(tables: TestTables) -> None:
    table = tables.sessions(rows=4)
    for slot in (-1, 4, 2**24):
        with pytest.raises(IndexError):
            table.ident(slot)
        with pytest.raises(IndexError):
            table.read(slot)


def test_a_row_outlives_the_name_of_its_table(tables: TestTables) -> None:
    """The mapping goes when the last user of a row does, not before."""
    writer = tables.status().writer(1)
    writer.fields.state = CallState.ICE
    writer.publish()
    row = tables.workers().open_row(WorkerKind.RELAY, 0, 1)
    row.count(Counter.OFFERS)
    assert row.counters[Counter.OFFERS] == 1


# --- sessions

FULL = SessionConfig(
    call_id="rtc_" + "x" * 35,
    generation=0xABCDEF,
    remote_fingerprint=bytes(range(64)),
    fingerprint_algorithm=FingerprintAlgorithm.SHA512,
    remote_ufrag="u" * 256,
    mid="m" * 63,
    created_unix_ns=1,
    offer_deadline_ns=2,
    end_deadline_ns=3,
    closed_ns=4,
    local_ssrc=5,
    remote_ssrc=6,
    sctp_port=7,
    sctp_max_message_bytes=8,
    backend_id=9,
    codec=2,
    audio_payload_type=111,
    red_payload_type=63,
    dtmf_payload_type=110,
    audio_level_ext_id=1,
    mid_ext_id=4,
    client_sends=False,
    client_receives=False,
    end_reason=10,
    dtls_active=False,
    nack=True,
    ptime_ms=60,
    options=b"o" * 15360,
)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15359, 15360])
def test_publish_and_read(tables: TestTables, length: int) -> None:
    table = tables.sessions()
    written = replace(FULL, options=FULL.options[:length])
    ident = Ident(SessionState.OFFERED, 200, 0x123456, 0xABCDEF)
    table.publish(63, ident, written)
    assert table.read(63) == (ident, written)
    assert table.ident(63) == ident
    assert table.read(62) is None


def test_a_shorter_row_leaves_nothing_of_the_longer(tables: TestTables) -> None:
    table = tables.sessions()
    table.publish(0, offered(0xABCDEF), FULL)
    table.publish(0, offered(2), config(2))
    assert table.read(0) == (offered(2), config(2))


def test_state_and_free(tables: TestTables) -> None:
    table = tables.sessions()
    table.publish(5, offered(7, worker=3, previous=6), config(7))
    table.set_state(5, SessionState.ENDED, EndReason.HANGUP, now_ns=99)
    ident = Ident(SessionState.ENDED, 3, 6, 7)
    assert table.read(5) == (ident, config(7, end_reason=EndReason.HANGUP, closed_ns=99))
    table.free(5)
    assert table.read(5) is None
    assert table.ident(5).state is SessionState.FREE
    assert table.ident(5).generation == 7


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"call_id": "x" * 40}, "call_id: 40 bytes, limit 39"),
        ({"mid": "a\0b"}, "mid"),
        ({"remote_ufrag": "ü" * 129}, "remote_ufrag: 258 bytes"),
        ({"remote_fingerprint": bytes(31)}, "remote_fingerprint: 31 bytes"),
        ({"sctp_port": 65536}, "sctp_port"),
        ({"options": bytes(15361)}, "options: 15361 bytes"),
        ({"generation": 2}, "generation"),
    ],
)
def test_what_does_not_fit_leaves_the_row_alone(
    tables: TestTables, values: dict[str, object], words: str
) -> None:
    table = tables.sessions()
    with pytest.raises(ValueError, match=words):
        table.publish(1, offered(1), replace(config(1), **values))  # type: ignore[arg-type]
    assert table.read(1) is None
    assert table.recover() == []


def leave_odd(table: SessionTable, slot: int) -> None:
    """As a writer killed after its first store."""
    table.region.row(slot).sequence += 1


def test_recover(tables: TestTables) -> None:
    table = tables.sessions()
    for slot in (1, 2, 3):
        table.publish(slot, offered(slot), config(slot))
    table.free(3)
    for slot in (1, 3):
        leave_odd(table, slot)
    assert table.read(1) is None  # bounded, and no exception
    assert table.ident(1) == offered(1)  # the packet path goes on
    assert table.recover() == [1, 3]
    assert table.recover() == []
    assert table.read(1) == (offered(1), config(1))
    assert table.read(3) is None


def test_a_row_half_published_is_free_after_recovery(tables: TestTables) -> None:
    """The generation in the configuration is what publish touches first and
    last; here it died in between, over a live call."""
    table = tables.sessions()
    table.publish(1, offered(1), config(1))
    leave_odd(table, 1)
    table.region.row(1).config.generation = 0
    assert table.recover() == [1]
    assert table.read(1) is None
    assert table.ident(1).generation == 1


def test_the_next_write_mends_an_odd_row(tables: TestTables) -> None:
    table = tables.sessions()
    leave_odd(table, 1)
    table.publish(1, offered(1), config(1))
    assert table.read(1) == (offered(1), config(1))


# --- status


def test_status(tables: TestTables) -> None:
    table = tables.status()
    assert table.read(1) is None
    writer = table.writer(1)
    fields = writer.fields
    fields.state = CallState.CONNECTED
    fields.generation = 7
    fields.client = {"ip": list(V4_LOOPBACK), "port": 5000, "transport": 1}
    fields.local = {"ip": list(bytes(15) + b"\x01"), "port": 3478, "transport": 1}
    fields.drops = 2**64 - 1
    fields.detail = "backend liegt quer: ü".encode()
    assert table.read(1) is None  # nothing shows before publish
    writer.publish()
    status = table.read(1)
    assert status is not None
    assert (status.state, status.generation, status.drops) == (3, 7, 2**64 - 1)
    assert status.client == ("127.0.0.1", 5000, 1)
    assert status.local == ("::1", 3478, 1)
    assert status.detail == "backend liegt quer: ü"
    table.clear(1)
    assert table.read(1) is None


def test_status_row_of_a_dead_writer(tables: TestTables) -> None:
    table = tables.status()
    table.region.row(1).sequence += 1
    assert table.read(1) is None
    writer = table.writer(1)
    writer.fields.state = CallState.ICE
    writer.publish()
    assert table.read(1) is not None


# --- routes


def test_routes(tables: TestTables) -> None:
    table = tables.routes(rows=16)
    assert table.find(1, 0) is None
    for worker in range(16):
        table.set(1, worker, V4_LOOPBACK, 1000 + worker)
    assert [table.find(1, worker) for worker in range(16)] == [
        (V4_LOOPBACK, 1000 + worker) for worker in range(16)
    ]
    with pytest.raises(OSError, match="No space left"):
        table.set(2, 0, V4_LOOPBACK, 1)
    table.set(1, 5, V4_LOOPBACK, 2005)
    assert table.find(1, 5) == (V4_LOOPBACK, 2005)
    table.clear(1, 7)
    table.clear(1, 7)
    assert table.find(1, 7) is None
    assert [table.find(1, w) for w in range(16) if w != 7].count(None) == 0
    table.set(2, 0, V4_LOOPBACK, 1)
    assert table.find(2, 0) == (V4_LOOPBACK, 1)
    assert len(table.all()) == 16


def test_route_row_of_a_dead_writer(tables: TestTables) -> None:
    table = tables.routes(rows=4)
    table.set(1, 0, V4_LOOPBACK, 1)
    row = next(i for i in range(4) if binding.route_read(table.region, i))
    table.region.row(row).sequence += 1
    assert table.find(1, 0) is None
    table.set(1, 0, V4_LOOPBACK, 2)
    assert table.find(1, 0) == (V4_LOOPBACK, 2)
    assert len(table.all()) == 1


# --- workers


def test_workers(tables: TestTables) -> None:
    table = tables.workers()
    assert table.all() == []
    row = table.open_row(WorkerKind.TRANSCEIVER, 1, 3)
    row.count(Counter.CALLS_STARTED)
    row.count(Counter.CALLS_STARTED, 4)
    row.heartbeat(77, 8)
    info = table.find(WorkerKind.TRANSCEIVER, 1)
    assert info is not None
    assert (info.kind, info.index, info.incarnation) == (WorkerKind.TRANSCEIVER, 1, 3)
    assert (info.pid, info.heartbeat_ns, info.load) == (os.getpid(), 77, 8)
    assert info.cpu_ns > 0
    assert info.counters["calls_started"] == 5
    assert set(info.counters) == {counter.name.lower() for counter in Counter}
    assert table.read(65) == info

    successor = table.open_row(WorkerKind.TRANSCEIVER, 1, 4)
    successor.count(Counter.CALLS_STARTED)
    info = table.find(WorkerKind.TRANSCEIVER, 1)
    assert info is not None
    assert info.incarnation == 4
    assert info.counters["calls_started"] == 6  # goes on


def test_worker_rows() -> None:
    assert row_index(WorkerKind.RELAY, 63) == 63
    assert row_index(WorkerKind.TRANSCEIVER, 0) == 64
    assert row_index(WorkerKind.CONTROL_PLANE) == 128
    assert row_index(WorkerKind.SUPERVISOR) == 129
    for kind, index in ((WorkerKind.RELAY, 64), (WorkerKind.TRANSCEIVER, -1), (WorkerKind.NONE, 0)):
        with pytest.raises(ValueError, match="no row"):
            row_index(kind, index)
