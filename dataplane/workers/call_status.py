"""Publishes one call's state in the status table, for the control plane and the admin API."""

from __future__ import annotations

from dataplane.proto.address import Address
from dataplane.proto.ice_lite import CONSENT_NS
from dataplane.proto.media_session import MediaSession
from dataplane.shm.enums import BackendState, CallState, EndReason
from dataplane.shm.status import StatusWriter

PUBLISH_INTERVAL_NS = 500_000_000
_U32_MAX = 0xFFFFFFFF


class CallStatus:
    """Owns the row of one call. Figures are copied twice a second, states at once."""

    def __init__(
        self,
        writer: StatusWriter,
        *,
        generation: int,
        incarnation: int,
        worker: int,
        relay: int,
        client: Address,
        local_ip: bytes,
        udp_port: int,
        backend_name: str,
        now_ns: int,
    ) -> None:
        self._writer = writer
        self.backend_name = backend_name
        self.client_text = str(client)
        self.audio_dropped = 0
        self._published_ns = 0
        self._disowned = False
        f = writer.fields
        f.generation = generation
        f.incarnation = incarnation
        f.worker = worker
        f.relay = relay
        f.first_stun_ns = now_ns
        f.last_activity_ns = now_ns
        self._set_address(f.client, client)
        self._set_address(f.local, Address(local_ip, udp_port, client.transport))

    def disown(self) -> None:
        """The row is another call's by now: write it no more."""
        self._disowned = True

    def _publish(self) -> None:
        if not self._disowned:
            self._writer.publish()

    def state(self, state: CallState, now_ns: int) -> None:
        """The call moved on. For its end, see ended: nobody may see that without the reason."""
        f = self._writer.fields
        f.state = state
        if state is CallState.DTLS:
            f.dtls_started_ns = now_ns
        elif state is CallState.CONNECTED:
            f.connected_ns = now_ns
        self._publish()

    def backend(self, state: BackendState, detail: str) -> None:
        """The backend's state moved; detail says why, in words."""
        f = self._writer.fields
        f.backend_state = state
        self._set_detail(detail)
        self._publish()

    def ready(self, now_ns: int) -> None:
        """The backend's (first) READY was accepted."""
        f = self._writer.fields
        f.backend_ready_ns = f.backend_ready_ns or now_ns
        self._publish()

    def ended(self, reason: EndReason, detail: str, now_ns: int) -> None:
        """The last word on this call."""
        f = self._writer.fields
        f.state = CallState.ENDED
        f.end_reason = reason
        f.ended_ns = now_ns
        self._set_detail(detail)
        self._publish()

    def drop(self) -> None:
        """A datagram of this call was thrown away."""
        self._writer.fields.drops += 1

    def playout_lateness(self, lateness_ns: int) -> None:
        """How long after its deadline the last frame was sent."""
        self._writer.fields.playout_delay_us = _microseconds(lateness_ns)

    def refresh(self, session: MediaSession, relay: int, now_ns: int) -> None:
        """Copy the figures if it is time."""
        if now_ns - self._published_ns < PUBLISH_INTERVAL_NS:
            return
        self._published_ns = now_ns
        self._writer.fields.relay = relay
        self.figures(session)
        self._publish()

    def figures(self, session: MediaSession) -> None:
        """Copy the figures; the next publishing shows them."""
        f = self._writer.fields
        if session.ice.selected is not None:
            self._set_address(f.client, session.ice.selected)
        f.last_activity_ns = session.last_activity_ns
        f.last_consent_ns = session.ice.consent_expires_ns - CONSENT_NS
        f.first_audio_in_ns = session.first_audio_in_ns
        f.first_audio_out_ns = session.first_audio_out_ns
        f.packets_received = session.packets_received
        f.bytes_received = session.bytes_received
        f.packets_sent = session.packets_sent
        f.bytes_sent = session.bytes_sent
        f.audio_dropped_frames = self.audio_dropped
        f.uplink_delay_us = _microseconds(session.uplink_delay_ns)
        if session.dtls is not None:
            f.srtp_profile = session.dtls.srtp_profile or 0
        self._media_figures(session)

    def _media_figures(self, session: MediaSession) -> None:
        f = self._writer.fields
        if session.uplink is not None:
            stats = session.uplink.stats
            f.packets_expected = stats.expected
            f.packets_lost = stats.lost
            f.packets_repaired = stats.repaired
            f.packets_late = stats.late
            f.packets_duplicate = stats.duplicate
            f.samples_concealed = stats.concealed_samples
            f.jitter_us = _microseconds(stats.jitter_ns)
        if session.downlink is not None:
            f.playout_queue_ms = session.downlink.queued_ms
        reports = session.reports
        f.rtt_us = _microseconds(reports.rtt_ns)
        f.remote_packets_lost = reports.remote_lost
        f.remote_fraction_lost = reports.remote_fraction_lost
        f.remote_jitter_us = _microseconds(reports.remote_jitter_ns)

    def _set_detail(self, detail: str) -> None:
        encoded = detail.encode(errors="replace")[:95]
        self._writer.fields.detail = encoded.decode(errors="ignore").encode()

    @staticmethod
    def _set_address(field: object, address: Address) -> None:
        field.ip = address.ip  # type: ignore[attr-defined]
        field.port = address.port  # type: ignore[attr-defined]
        field.transport = address.transport  # type: ignore[attr-defined]


def _microseconds(ns: int) -> int:
    """As the table holds it. Clients choose timestamps and reports, so any value may come."""
    return min(max(0, ns) // 1000, _U32_MAX)
