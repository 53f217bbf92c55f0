"""The status table: what a call's transceiver says of it."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from dataplane.kernel import binding
from dataplane.kernel.binding import CData, HasRegion, Region

HostPort = tuple[str, int, int]
"""(host, port, transport); host is empty when not known, IPv4 unmapped."""

# See sessions.READ_TRIES.
READ_TRIES = 8


@dataclass(frozen=True, slots=True)
class Status:
    """Every field of ``ek_status``; units as the names say, counts otherwise."""

    generation: int
    incarnation: int
    state: int
    end_reason: int
    backend_state: int
    worker: int
    srtp_profile: int
    relay: int
    client: HostPort
    local: HostPort
    first_stun_ns: int
    dtls_started_ns: int
    connected_ns: int
    first_audio_in_ns: int
    first_audio_out_ns: int
    backend_ready_ns: int
    last_activity_ns: int
    last_consent_ns: int
    ended_ns: int
    packets_received: int
    bytes_received: int
    packets_sent: int
    bytes_sent: int
    packets_expected: int
    packets_lost: int
    packets_repaired: int
    packets_late: int
    packets_duplicate: int
    samples_concealed: int
    audio_dropped_frames: int
    drops: int
    jitter_us: int
    rtt_us: int
    playout_queue_ms: int
    playout_delay_us: int
    uplink_delay_us: int
    remote_packets_lost: int
    remote_jitter_us: int
    remote_fraction_lost: int
    detail: str


_NOT_PLAIN = ("client", "local", "detail")
_PLAIN_FIELDS = tuple(name for name in Status.__slots__ if name not in _NOT_PLAIN)


class StatusWriter:
    """Held by the transceiver for one call: it changes ``fields`` (an
    ``ek_status`` struct) as it likes, and ``publish`` shows them to everybody."""

    def __init__(self, row: CData, region: Region) -> None:
        self._row = row
        self._region = region  # keeps the mapping that the row is in
        self.fields: CData = binding.new_status()

    def publish(self) -> None:
        """Copy the fields into the row. Costs well under a microsecond."""
        binding.status_publish(self._row, self.fields)


class StatusTable:
    """View of the status table."""

    def __init__(self, segment: HasRegion) -> None:
        self.segment = segment
        self.region: Region = segment.region
        self.row_count = self.region.row_count

    def read(self, slot: int) -> Status | None:
        """One consistent write; None when nothing was said since ``clear`` or
        the row could not be read. Raises IndexError outside the table."""
        row = self.region.row(slot)
        for _ in range(READ_TRIES):
            verdict, fields = binding.status_read(row)
            if verdict == binding.READ_OK:
                return _from_struct(fields)
            if verdict == binding.READ_EMPTY:
                return None
            os.sched_yield()
        return None

    def glance(self, slot: int) -> CData:
        """The row's ``ek_status`` as it stands, unsynchronised: good for single fields of one
        word, also when a writer died in the middle of the row, and far cheaper than ``read``.
        generation and incarnation share a word, so they are of one write."""
        return self.region.row(slot).status

    def writer(self, slot: int) -> StatusWriter:
        """For the transceiver that owns the call in that slot."""
        return StatusWriter(self.region.writable_row(slot), self.region)

    def clear(self, slot: int) -> None:
        """Forget what the row's last call left. For its owner."""
        binding.status_publish(self.region.writable_row(slot), binding.new_status())


def _from_struct(fields: CData) -> Status:
    return Status(
        client=_host_port(fields.client),
        local=_host_port(fields.local),
        detail=binding.text_of(fields.detail),
        **{name: int(getattr(fields, name)) for name in _PLAIN_FIELDS},
    )


def _host_port(address: CData) -> HostPort:
    ip = bytes(address.ip)
    host = ""
    if address.port or any(ip):
        ip6 = ipaddress.IPv6Address(ip)
        host = str(ip6.ipv4_mapped or ip6)
    return host, int(address.port), int(address.transport)
