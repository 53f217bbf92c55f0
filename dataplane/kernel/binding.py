"""The C kernel, typed: the only importer of its ``ffi`` and ``lib``.

Rows are addressed by index and checked against the region's row count here, so
that no Python caller can make C reach outside a mapping. Shared memory is only
ever touched by C (all its atomics live there); what comes back are copies.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from dataplane.kernel import _kernel

ffi: Any = _kernel.ffi
lib: Any = _kernel.lib

CData: TypeAlias = Any
"""A cffi object: a C struct, array or pointer."""

ClientAddress: TypeAlias = tuple[bytes, int, int]
"""(ip: 16 bytes with IPv4 mapped, port, transport)."""

MAGIC: int = lib.EK_MAGIC
LAYOUT_VERSION: int = lib.EK_LAYOUT_VERSION
HEADER_BYTES: int = ffi.sizeof("struct ek_region_header")
OPTIONS_BYTES: int = lib.EK_OPTIONS_BYTES
COUNTER_SLOTS: int = lib.EK_COUNTER_SLOTS
MAX_RELAYS: int = lib.EK_MAX_RELAYS
MAX_TRANSCEIVERS: int = lib.EK_MAX_TRANSCEIVERS
WORKER_ROWS: int = lib.EK_WORKER_ROWS
WORKER_ROW_TRANSCEIVER_0: int = lib.EK_WORKER_ROW_TRANSCEIVER_0
WORKER_ROW_CONTROL_PLANE: int = lib.EK_WORKER_ROW_CONTROL_PLANE
WORKER_ROW_SUPERVISOR: int = lib.EK_WORKER_ROW_SUPERVISOR
MAX_DATAGRAM_BYTES: int = lib.EK_MAX_DATAGRAM_BYTES
GENERATION_MASK: int = lib.EK_GENERATION_MASK
NOT_AGREED: int = lib.EK_NONE
"""A payload type or header extension that the answer does not have."""

HOP_BYTES_LOOPBACK = 60_000
"""Longest hop datagram on one machine: loopback's MTU is 65,536 bytes."""

ROW_STRUCTS: dict[int, str] = {
    lib.EK_REGION_SESSIONS: "struct ek_session_row",
    lib.EK_REGION_STATUS: "struct ek_status_row",
    lib.EK_REGION_FLOWS: "struct ek_flow_row",
    lib.EK_REGION_ROUTES: "struct ek_route_row",
    lib.EK_REGION_WORKERS: "struct ek_worker_row",
}

GATHER_US = 100
"""How long a relay under load lets datagrams come together (DESIGN section 4)."""

# enum ek_read
READ_OK: int = lib.EK_READ_OK
READ_EMPTY: int = lib.EK_READ_EMPTY
READ_BUSY: int = lib.EK_READ_BUSY


def row_bytes(kind: int) -> int:
    """Size of one row of a region of that kind, in bytes."""
    return int(ffi.sizeof(ROW_STRUCTS[kind]))


def text_of(field: CData) -> str:
    """A NUL-padded ``char[]`` as text."""
    return bytes(ffi.string(field)).decode(errors="replace")


class Region:
    """A mapped segment: header and rows. ``release`` it before its mmap closes."""

    def __init__(self, memory: mmap.mmap, writable: bool) -> None:
        self._buffer = ffi.from_buffer(memory, require_writable=writable)
        self._bytes = len(memory)
        self.writable = writable
        self.header: CData = ffi.cast("struct ek_region_header *", self._buffer)
        self._rows: CData = None

    def init(self, kind: int, row_count: int, boot_id: bytes, owner_index: int) -> None:
        """Write the header of a new segment; its rows are zero already."""
        if self._bytes < HEADER_BYTES + row_count * row_bytes(kind):
            raise ValueError("segment is too small for its rows")
        boot = ffi.from_buffer("uint8_t[16]", boot_id)
        lib.ek_region_init(self.header, kind, row_count, row_bytes(kind), boot, owner_index)

    @property
    def magic(self) -> int:
        return int(lib.ek_region_magic(self.header))

    @property
    def boot_id(self) -> bytes:
        return bytes(self.header.boot_id)

    @property
    def row_count(self) -> int:
        return int(self.header.row_count)

    def row(self, index: int) -> CData:
        """Pointer to a row; keep the region as long as you keep it. Raises
        IndexError outside the region."""
        if not 0 <= index < self.header.row_count:
            raise IndexError(f"row {index} of {self.header.row_count}")
        if self._rows is None:
            self._rows = ffi.cast(f"{ROW_STRUCTS[self.header.kind]} *", self.header + 1)
        return self._rows + index

    def writable_row(self, index: int) -> CData:
        """``row``, refused when the region is mapped read-only (a store would
        be a segmentation fault)."""
        if not self.writable:
            raise PermissionError("region is mapped read-only")
        return self.row(index)

    def release(self) -> None:
        """Let go of the mapping. No row may be used afterwards."""
        self.header = ffi.NULL
        self._rows = None
        ffi.release(self._buffer)


class HasRegion(Protocol):
    """A segment, or a table on one."""

    @property
    def region(self) -> Region: ...


class HasRow(Protocol):
    """A worker row opened for writing."""

    @property
    def row(self) -> CData: ...


# --- session rows


def new_session_config() -> CData:
    return ffi.new("struct ek_session_config *")


def session_ident(row: CData) -> int:
    return int(lib.ek_session_ident(row))


def session_read(row: CData) -> tuple[int, int, CData, bytes]:
    """(enum ek_read, ident, config, options) of one write."""
    ident = ffi.new("uint64_t *")
    config = new_session_config()
    options = ffi.new("uint8_t[]", OPTIONS_BYTES)
    verdict = lib.ek_session_read(row, ident, config, options)
    if verdict != READ_OK:
        return verdict, 0, config, b""
    length = min(config.options_bytes, OPTIONS_BYTES)
    return verdict, int(ident[0]), config, bytes(ffi.buffer(options, length))


def session_publish(row: CData, ident: int, config: CData, options: bytes) -> None:
    """``config.options_bytes`` is set from ``options``."""
    if len(options) > OPTIONS_BYTES:
        raise ValueError(f"options of {len(options)} bytes, limit {OPTIONS_BYTES}")
    config.options_bytes = len(options)
    lib.ek_session_publish(row, ident, config, ffi.from_buffer("uint8_t[]", options))


def session_set_state(row: CData, state: int, end_reason: int, now_ns: int) -> None:
    lib.ek_session_set_state(row, state, end_reason, now_ns)


def session_free(row: CData) -> None:
    lib.ek_session_free(row)


def session_recover(row: CData) -> bool:
    return bool(lib.ek_session_recover(row))


# --- status rows


def new_status() -> CData:
    return ffi.new("struct ek_status *")


def status_publish(row: CData, status: CData) -> None:
    lib.ek_status_publish(row, status)


def status_read(row: CData) -> tuple[int, CData]:
    status = new_status()
    return lib.ek_status_read(row, status), status


# --- routes


def route_set(region: Region, node_id: int, worker: int, ip: bytes, port: int) -> None:
    """Raises OSError ENOSPC when the table is full."""
    _writable(region)
    address = ffi.from_buffer("uint8_t[16]", ip)
    _check(lib.ek_route_set(region.header, node_id, worker, address, port))


def route_clear(region: Region, node_id: int, worker: int) -> None:
    """Clearing what is not there is no error."""
    _writable(region)
    lib.ek_route_clear(region.header, node_id, worker)


def route_find(region: Region, node_id: int, worker: int) -> CData | None:
    route = ffi.new("struct ek_route_row *")
    index = lib.ek_route_find(region.header, node_id, worker, route)
    return route if index >= 0 else None


def route_read(region: Region, index: int) -> CData | None:
    region.row(index)
    route = ffi.new("struct ek_route_row *")
    verdict = lib.ek_route_read(region.header, index, route)
    return route if verdict == READ_OK else None


# --- worker rows


def worker_open(
    row: CData, kind: int, index: int, pid: int, incarnation: int, started_unix_ns: int
) -> None:
    lib.ek_worker_open(row, kind, index, pid, incarnation, started_unix_ns)


def worker_heartbeat(row: CData, now_ns: int, load: int, cpu_ns: int) -> None:
    lib.ek_worker_heartbeat(row, now_ns, load, cpu_ns)


def worker_read(row: CData) -> CData | None:
    copy = ffi.new("struct ek_worker_row *")
    verdict = lib.ek_worker_read(row, copy)
    return copy if verdict == READ_OK else None


def worker_count(row: CData, counter: int, n: int) -> None:
    lib.ek_worker_count(row, counter, n)


# --- flows


def new_flow() -> CData:
    return ffi.new("struct ek_flow_row *")


def flow_check(region: Region) -> None:
    """Raises OSError EINVAL unless the row count is a power of two from 8 up."""
    _check(lib.ek_flow_check(region.header))


def flow_recover(region: Region) -> int:
    _writable(region)
    return int(lib.ek_flow_recover(region.header))


def flow_install(region: Region, flow: CData) -> int:
    """Returns an ``enum ek_install``. For the table's one writer."""
    _writable(region)
    return int(lib.ek_flow_install(region.header, flow))


def flow_lookup(region: Region, client: ClientAddress) -> CData | None:
    flow = new_flow()
    verdict = lib.ek_flow_lookup(region.header, _address(client), flow)
    return flow if verdict == READ_OK else None


def flow_read(region: Region, index: int) -> CData | None:
    region.row(index)
    flow = new_flow()
    verdict = lib.ek_flow_read(region.header, index, flow)
    return flow if verdict == READ_OK else None


def flow_count_live(region: Region, since_ns: int) -> int:
    return int(lib.ek_flow_count_live(region.header, since_ns))


# --- pure parts (the relay loop uses them in C; here for tests and tools)


class KeyRing:
    """The cluster's MAC keys by key id (0..15), 16 bytes each."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        self.ring: CData = ffi.new("struct ek_key_ring *")
        for key_id, key in keys.items():
            if not 0 <= key_id <= 15 or len(key) != 16:
                raise ValueError("a key ring holds 16-byte keys of ids 0..15")
            self.ring.present |= 1 << key_id
            self.ring.key[key_id] = list(key)


@dataclass(frozen=True)
class PeekedUfrag:
    """What a Binding request's USERNAME says, MAC checked."""

    key_id: int
    node_id: int
    worker: int
    slot: int
    generation: int
    offset: int
    """Where the ufrag's text stands in the datagram, in bytes."""


def demux(datagram: bytes) -> int:
    """An ``enum ek_demux`` (RFC 7983)."""
    return int(lib.ek_demux(ffi.from_buffer("uint8_t[]", datagram), len(datagram)))


def siphash24(key: bytes, data: bytes) -> int:
    if len(key) != 16:
        raise ValueError("SipHash wants a key of 16 bytes")
    key_bytes = ffi.from_buffer("uint8_t[]", key)
    return int(lib.ek_siphash24(key_bytes, ffi.from_buffer("uint8_t[]", data), len(data)))


def stun_peek(datagram: bytes, keys: KeyRing) -> tuple[int, PeekedUfrag | None]:
    """(enum ek_peek, ufrag when that is OK)."""
    ufrag = ffi.new("struct ek_ufrag *")
    offset = ffi.new("size_t *")
    data = ffi.from_buffer("uint8_t[]", datagram)
    verdict = lib.ek_stun_peek(data, len(datagram), keys.ring, ufrag, offset)
    if verdict != lib.EK_PEEK_OK:
        return verdict, None
    peeked = PeekedUfrag(
        ufrag.key_id, ufrag.node_id, ufrag.worker, ufrag.slot, ufrag.generation, offset[0]
    )
    return verdict, peeked


def parse_hop(datagram: bytes) -> tuple[CData, CData] | None:
    """(header, records) or None when malformed. Records point into ``datagram``,
    which must outlive them."""
    header = ffi.new("struct ek_hop_header *")
    limit = len(datagram) // lib.EK_HOP_RECORD_BYTES
    records = ffi.new("struct ek_hop_record[]", limit)
    data = ffi.from_buffer("uint8_t[]", datagram)
    count = lib.ek_hop_parse(data, len(datagram), header, records, limit)
    return (header, records[0:count]) if count >= 0 else None


# --- the relay loop


@dataclass(frozen=True)
class SlowItem:
    """A STUN request whose MESSAGE-INTEGRITY must be verified before it may make
    or move a flow. Its ufrag carries our MAC and names a session that lives."""

    datagram: bytes
    client: ClientAddress
    local_ip: bytes
    """The address it was sent to, 16 bytes; zeros when unknown."""
    socket_index: int
    """Which of the relay's ``udp_fds``."""
    slot: int
    generation: int
    worker: int
    node_id: int
    ufrag: str


class Relay:
    """The relay loop. Each slow item ends in ``install_and_forward`` or in
    ``count`` of a drop; it is counted as received then, so that received equals
    forwarded plus dropped whenever no item is held, even after a SIGKILL.

    ``flows`` must be mapped writable and belong to this relay alone. A
    predecessor's flows go on. ``gather_us`` is how long it lets datagrams come
    together before it takes them when many are on their way (0: never).
    Raises OSError for unusable sockets or tables.
    """

    def __init__(
        self,
        udp_fds: Sequence[int],
        hop_fd: int,
        flows: HasRegion,
        sessions: HasRegion,
        routes: HasRegion,
        worker_row: HasRow,
        keys: Mapping[int, bytes],
        node_id: int,
        index: int,
        incarnation: int,
        hop_bytes: int = HOP_BYTES_LOOPBACK,
        gather_us: int = GATHER_US,
    ) -> None:
        _writable(flows.region)
        if not 1 <= len(udp_fds) <= 4:
            raise ValueError("a relay has one to four sockets")
        self._kept = (flows, sessions, routes, worker_row)
        setup = ffi.new("struct ek_relay_setup *")
        ring = KeyRing(keys)
        for i, fd in enumerate(udp_fds):
            setup.udp_fds[i] = fd
        setup.udp_fd_count = len(udp_fds)
        setup.hop_fd = hop_fd
        setup.flows = flows.region.header
        setup.sessions = sessions.region.header
        setup.routes = routes.region.header
        setup.worker_row = worker_row.row
        setup.keys = ring.ring
        setup.node_id = node_id
        setup.index = index
        setup.incarnation = incarnation
        setup.hop_bytes = hop_bytes
        setup.gather_us = gather_us
        out = ffi.new("struct ek_relay **")
        _check(lib.ek_relay_create(setup, out))
        self._relay: CData = ffi.gc(out[0], lib.ek_relay_destroy)

    def poll(self, timeout_ms: int) -> list[SlowItem]:
        """Relay until the sockets are empty and a slow item waits, a signal
        comes, or ``timeout_ms`` is over. The GIL is free meanwhile."""
        count = _check(lib.ek_relay_poll(self._relay, timeout_ms))
        return [_slow_item(lib.ek_relay_slow_item(self._relay, i)) for i in range(count)]

    def install_and_forward(self, item: SlowItem) -> bool:
        """The item's MESSAGE-INTEGRITY is right: install or move the flow and
        send it on. False: dropped and counted (session gone, no route, or the
        send failed)."""
        return bool(lib.ek_relay_install_and_forward(self._relay, _slow_struct(item)))

    def count(self, counter: int) -> None:
        """Count one. A drop of the relay's also ends a slow item."""
        lib.ek_relay_count(self._relay, counter)

    def close(self) -> None:
        """Free its memory; sockets and tables stay."""
        ffi.release(self._relay)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Duplicate another process's descriptor (Linux 5.6), close-on-exec. Raises
    OSError, PermissionError without ptrace rights over it."""
    return _check(lib.ek_pidfd_getfd(pidfd, fd))


def _slow_item(item: CData) -> SlowItem:
    client = item.client
    return SlowItem(
        datagram=bytes(ffi.buffer(item.datagram, item.datagram_bytes)),
        client=(bytes(client.ip), int(client.port), int(client.transport)),
        local_ip=bytes(item.local_ip),
        socket_index=int(item.socket_index),
        slot=int(item.ufrag.slot),
        generation=int(item.ufrag.generation),
        worker=int(item.ufrag.worker),
        node_id=int(item.ufrag.node_id),
        ufrag=bytes(ffi.buffer(item.ufrag_text)).decode("ascii"),
    )


def _slow_struct(item: SlowItem) -> CData:
    if len(item.datagram) > MAX_DATAGRAM_BYTES:
        raise ValueError("a datagram that no relay received")
    struct = ffi.new("struct ek_slow_item *")
    struct.client = _address(item.client)[0]
    ffi.memmove(struct.local_ip, item.local_ip, 16)
    struct.ufrag.slot = item.slot
    struct.ufrag.generation = item.generation
    struct.ufrag.worker = item.worker
    struct.ufrag.node_id = item.node_id
    struct.datagram_bytes = len(item.datagram)
    ffi.memmove(struct.datagram, item.datagram, len(item.datagram))
    return struct


def _address(client: ClientAddress) -> CData:
    ip, port, transport = client
    address = ffi.new("struct ek_address *")
    ffi.memmove(address.ip, ffi.from_buffer("uint8_t[16]", ip), 16)
    address.port = port
    address.transport = transport
    return address


def _writable(region: Region) -> None:
    if not region.writable:
        raise PermissionError("region is mapped read-only")


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
