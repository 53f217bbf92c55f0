"""One call, sans-IO: records in; datagrams, backend frames and events out.

Theory. A call moves through five states, only ever downwards:

    NEW ──check──▶ ICE ──handshake──▶ DTLS ──keys──▶ CONNECTED
     └──────────────┴──────────end──────┴───────────────┴─────▶ ENDED

NEW lasts only until the first STUN check is authenticated; before that nothing
exists but the ICE agent (no SSL object, buffer or codec). What a packet may do
depends on the state and on its source: STUN is judged by its integrity, DTLS is
heard only from addresses that STUN has verified, RTP only with keys, and its
SRTP tag judges it. No packet ends a call, except an authenticated DTLS alert.

The backend may be absent at any time without the call noticing: the uplink
holds what it can, the downlink plays what it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from dataplane.proto import rtp
from dataplane.proto.address import Address
from dataplane.proto.demux import Demux
from dataplane.proto.downlink import Downlink
from dataplane.proto.dtls import HANDSHAKE_TIMEOUT_NS, DtlsEndpoint
from dataplane.proto.errors import BadPacket
from dataplane.proto.ice_lite import IceLite
from dataplane.proto.reports import Reports
from dataplane.proto.srtp import SrtpSession
from dataplane.proto.uplink import Uplink


class State(Enum):
    NEW = "new"
    ICE = "ice"
    DTLS = "dtls"
    CONNECTED = "connected"
    ENDED = "ended"


class Step(Enum):
    CHECK = "check"
    HANDSHAKE = "handshake"
    KEYS = "keys"
    END = "end"


_TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.NEW, Step.CHECK): State.ICE,
    (State.ICE, Step.HANDSHAKE): State.DTLS,
    (State.DTLS, Step.KEYS): State.CONNECTED,
    (State.NEW, Step.END): State.ENDED,
    (State.ICE, Step.END): State.ENDED,
    (State.DTLS, Step.END): State.ENDED,
    (State.CONNECTED, Step.END): State.ENDED,
}


@dataclass(frozen=True)
class SessionParameters:
    """What offer and answer agreed, and the node's settings."""

    local_ufrag: str
    ice_pwd: str
    remote_ufrag: str
    certificate_pem: str
    private_key_pem: str = field(repr=False)
    fingerprint_algorithm: str
    """As in SDP: "sha-256", "sha-384" or "sha-512"."""
    remote_fingerprint: bytes
    dtls_is_client: bool
    payload_type: int
    local_ssrc: int
    remote_ssrc: int
    """0: not announced; the first authenticated stream is taken."""
    client_receives: bool
    cname: str
    unix_offset_ns: int
    """CLOCK_REALTIME minus CLOCK_MONOTONIC."""
    end_deadline_ns: int = 0
    max_wait_ms: int = 60
    playout_lead_ms: int = 20
    opus_complexity: int = 5
    opus_bitrate: int = 32000


@dataclass(frozen=True)
class Transmit:
    """A datagram for the client. local_ip: the address to send from (16 bytes)."""

    datagram: bytes
    client: Address
    local_ip: bytes


@dataclass(frozen=True)
class StateChanged:
    state: State


@dataclass(frozen=True)
class ChannelData:
    """An SCTP packet that DTLS decrypted."""

    data: bytes


@dataclass(frozen=True)
class Ended:
    """reason: the name of an ek_end_reason in lower case. detail: for people."""

    reason: str
    detail: str


Event = StateChanged | ChannelData | Ended

RTCP_INTERVAL_NS = 1_000_000_000
"""RFC 3550 6.2 allows more often than every 5 s on small sessions; RTT and loss
are shown live."""

_UNKNOWN_IP = bytes(16)


class MediaSession:
    """See the module's docstring. Times are CLOCK_MONOTONIC nanoseconds."""

    def __init__(self, parameters: SessionParameters, now_ns: int) -> None:
        p = parameters
        self._parameters = p
        self.state = State.NEW
        self.ice = IceLite(p.local_ufrag, p.ice_pwd, p.remote_ufrag, now_ns)
        self.dtls: DtlsEndpoint | None = None
        self.uplink: Uplink | None = None
        self.downlink: Downlink | None = None
        self.reports = Reports(p.local_ssrc, p.cname, p.unix_offset_ns)
        self._srtp: SrtpSession | None = None
        self._local_ips: dict[Address, bytes] = {}
        self._transmits: list[Transmit] = []
        self._events: list[Event] = []
        self._dtls_deadline_ns = 0
        """By when a client that is to begin DTLS must have begun."""
        self._rtcp_due_ns = 0
        self.first_audio_in_ns = 0
        self.first_audio_out_ns = 0
        self.uplink_delay_ns = 0
        self.last_activity_ns = now_ns
        self.packets_received = 0
        self.bytes_received = 0
        self.packets_sent = 0
        self.bytes_sent = 0

    # --- in ---

    def handle_datagram(
        self,
        kind: Demux,
        payload: bytes,
        client: Address,
        local_ip: bytes,
        arrival_ns: int,
        now_ns: int,
    ) -> None:
        """One datagram of the client. local_ip: where the client sent it (16 bytes).
        Raises BadPacket for what is dropped; the call is as it was then."""
        if self.state is State.ENDED:
            raise BadPacket("drop_record_no_session", "the call has ended")
        if kind is Demux.STUN:
            self._handle_stun(payload, client, local_ip, now_ns)
            self.last_activity_ns = now_ns
        elif not self.ice.is_verified(client):
            raise BadPacket("drop_record_unverified_address", str(client))
        elif kind is Demux.DTLS:
            self._handle_dtls(payload, now_ns)
        else:
            self._handle_media(payload, arrival_ns, now_ns)

    def _handle_stun(self, payload: bytes, client: Address, local_ip: bytes, now_ns: int) -> None:
        response = self.ice.handle_request(payload, client, now_ns)
        self._transmits.append(Transmit(response, client, local_ip))
        if not self.ice.is_verified(client):
            return  # a proven request that was answered with an error
        if client not in self._local_ips:
            known = self.ice.verified
            self._local_ips = {a: ip for a, ip in self._local_ips.items() if a in known}
        self._local_ips[client] = local_ip
        if self.state is State.NEW:
            self._step(Step.CHECK)
            self._start_media()
            self._dtls_deadline_ns = now_ns + HANDSHAKE_TIMEOUT_NS
            if self._parameters.dtls_is_client:
                self._start_dtls(now_ns)

    def _start_media(self) -> None:
        p = self._parameters
        self.uplink = Uplink(payload_type=p.payload_type, max_wait_ns=p.max_wait_ms * 1_000_000)
        self.downlink = Downlink(
            payload_type=p.payload_type,
            ssrc=p.local_ssrc,
            lead_ms=p.playout_lead_ms,
            complexity=p.opus_complexity,
            bitrate=p.opus_bitrate,
        )

    def _start_dtls(self, now_ns: int) -> DtlsEndpoint:
        p = self._parameters
        self.dtls = DtlsEndpoint(
            p.certificate_pem,
            p.private_key_pem,
            p.fingerprint_algorithm,
            p.remote_fingerprint,
            is_client=p.dtls_is_client,
        )
        self.dtls.start(now_ns)
        self._step(Step.HANDSHAKE)
        self._pump_dtls(now_ns)
        return self.dtls

    def _handle_dtls(self, payload: bytes, now_ns: int) -> None:
        dtls = self.dtls or self._start_dtls(now_ns)
        try:
            dtls.handle_datagram(payload, now_ns)
        finally:
            self._pump_dtls(now_ns)

    def _pump_dtls(self, now_ns: int) -> None:
        dtls = self.dtls
        if dtls is None:
            return
        for datagram in dtls.poll_transmit():
            self._send(datagram)
        if dtls.state == "connected" and self.state is State.DTLS:
            local_key, remote_key = dtls.srtp_keys()
            self._srtp = SrtpSession(dtls.srtp_profile, local_key, remote_key)
            self._rtcp_due_ns = now_ns + RTCP_INTERVAL_NS
            self._step(Step.KEYS)
            if self.downlink is not None:
                self.downlink.start(now_ns)
        self._events.extend(ChannelData(data) for data in dtls.poll_app_data())
        if dtls.state == "failed":
            reason = "dtls_timeout" if dtls.failure == "dtls_timeout" else "dtls_failed"
            self.end(reason, dtls.failure, now_ns)
        elif dtls.state == "closed":
            self.end("client_closed", "the client closed the connection", now_ns)

    def _handle_media(self, payload: bytes, arrival_ns: int, now_ns: int) -> None:
        if self._srtp is None or self.uplink is None:
            raise BadPacket("drop_srtp_no_keys")
        if rtp.is_rtcp(payload):
            compound = self._srtp.unprotect_rtcp(payload)
            self.reports.handle_compound(compound, self.uplink.reception, now_ns)
            return
        packet = rtp.parse_rtp(self._srtp.unprotect_rtp(payload))
        announced = self._parameters.remote_ssrc
        if announced and packet.ssrc != announced:
            raise BadPacket("drop_rtp_ssrc", f"ssrc {packet.ssrc}")
        self.uplink.handle_rtp(packet, arrival_ns)
        self.last_activity_ns = now_ns
        self.packets_received += 1
        self.bytes_received += len(payload)
        self.first_audio_in_ns = self.first_audio_in_ns or now_ns
        self.uplink_delay_ns = now_ns - arrival_ns

    # --- time ---

    def next_timeout(self) -> int | None:
        """When handle_timer wants to be called; None once ended."""
        if self.state is State.ENDED:
            return None
        due = [self.ice.consent_expires_ns]
        if self._parameters.end_deadline_ns:
            due.append(self._parameters.end_deadline_ns)
        if self.state is State.ICE:
            due.append(self._dtls_deadline_ns)
        for part in (self.dtls, self.uplink):
            timeout = part.next_timeout() if part is not None else None
            if timeout is not None:
                due.append(timeout)
        if self.state is State.CONNECTED:
            due.append(self._rtcp_due_ns)
            timeout = self.downlink.next_timeout() if self.downlink is not None else None
            if timeout is not None:
                due.append(timeout)
        return min(due)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due."""
        if self.state is State.ENDED:
            return
        if now_ns >= self.ice.consent_expires_ns:
            self.end("consent_expired", "no valid check for 30 s", now_ns)
            return
        if 0 < self._parameters.end_deadline_ns <= now_ns:
            self.end("time_limit", "the call reached its time limit", now_ns)
            return
        if self.state is State.ICE and now_ns >= self._dtls_deadline_ns:
            self.end("dtls_timeout", "the client did not begin DTLS", now_ns)
            return
        if self.dtls is not None:
            self.dtls.handle_timer(now_ns)
            self._pump_dtls(now_ns)
        if self.uplink is not None:
            self.uplink.handle_timer(now_ns)
        if self.state is State.CONNECTED:
            self.play(now_ns)
            if now_ns >= self._rtcp_due_ns:
                self._rtcp_due_ns = now_ns + RTCP_INTERVAL_NS
                self._send_reports(now_ns)

    def play(self, now_ns: int) -> None:
        """Send the frames of the downlink whose deadline has come."""
        if self.downlink is None or self._srtp is None or self.state is not State.CONNECTED:
            return
        self.downlink.set_heard_lag(self.reports.rtt_ns // 2)
        for packet in self.downlink.handle_timer(now_ns):
            if not self._parameters.client_receives:
                continue
            self.reports.sent(packet.payload_bytes, packet.rtp_ts, now_ns)
            self.packets_sent += 1
            self.bytes_sent += len(packet.packet)
            self.first_audio_out_ns = self.first_audio_out_ns or now_ns
            self._send(self._srtp.protect_rtp(packet.packet))

    def _send_reports(self, now_ns: int) -> None:
        assert self._srtp is not None
        assert self.uplink is not None
        compound = self.reports.encode(self.uplink.reception, now_ns)
        self._send(self._srtp.protect_rtcp(compound))

    # --- out ---

    def poll_transmit(self) -> list[Transmit]:
        transmits, self._transmits = self._transmits, []
        return transmits

    def poll_event(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def send_channel_data(self, data: bytes, now_ns: int) -> None:
        """Encrypt an SCTP packet and send it."""
        if self.dtls is not None and self.dtls.state == "connected":
            self.dtls.send_app_data(data)
            self._pump_dtls(now_ns)

    def end(self, reason: str, detail: str, now_ns: int) -> None:
        """End the call: BYE and close_notify to the client where keys allow."""
        if self.state is State.ENDED:
            return
        if self._srtp is not None and self.uplink is not None:
            bye = self.reports.encode_bye(self.uplink.reception, now_ns)
            self._send(self._srtp.protect_rtcp(bye))
        self._step(Step.END)
        if self.dtls is not None:
            self.dtls.close(now_ns)
            for datagram in self.dtls.poll_transmit():
                self._send(datagram)
        self._events.append(Ended(reason, detail))

    def _send(self, datagram: bytes) -> None:
        client = self.ice.selected
        if client is not None:
            local_ip = self._local_ips.get(client, _UNKNOWN_IP)
            self._transmits.append(Transmit(datagram, client, local_ip))

    def _step(self, step: Step) -> None:
        self.state = _TRANSITIONS[self.state, step]
        self._events.append(StateChanged(self.state))
