"""The session core in virtual time, against a client built from the same protocol parts."""

from __future__ import annotations

import itertools

import pytest

from bench.binding_check import encode_check, parse_check_response
from bench.certificate import Certificate, shared_certificate
from bench.speech import encode_voice, synthetic_voice
from dataplane.proto.address import Address
from dataplane.proto.backend_frame import AudioFrame
from dataplane.proto.demux import Demux, classify
from dataplane.proto.dtls import DtlsEndpoint
from dataplane.proto.errors import BadPacket
from dataplane.proto.media_session import (
    ChannelData,
    Ended,
    Event,
    MediaSession,
    SessionParameters,
    State,
    StateChanged,
)
from dataplane.proto.opus import OpusDecoder
from dataplane.proto.rtcp import (
    Bye,
    ReceiverReport,
    ReportBlock,
    SenderReport,
    encode_rtcp,
    ntp_middle,
    parse_rtcp,
)
from dataplane.proto.rtp import RtpPacket, encode_rtp, is_rtcp, parse_rtp
from dataplane.proto.srtp import SrtpSession

MS = 1_000_000
START_NS = 5_000_000_000
LOCAL_UFRAG, PWD, REMOTE_UFRAG = "edgeUfrag", "edgePasswordOf24Chars123", "cliUfrag"
CLIENT = Address.from_text("192.0.2.7", 50_000)
STRANGER = Address.from_text("198.51.100.9", 50_000)
LOCAL_IP = Address.from_text("192.0.2.1", 0).ip
SSRC, REMOTE_SSRC, PAYLOAD_TYPE = 0x0EDE, 0xC11E, 111
EDGE = Certificate.make()


def fingerprint(certificate: Certificate) -> bytes:
    return bytes.fromhex(certificate.fingerprint.replace(":", ""))


def parameters(**changes: object) -> SessionParameters:
    values: dict[str, object] = {
        "local_ufrag": LOCAL_UFRAG,
        "ice_pwd": PWD,
        "remote_ufrag": REMOTE_UFRAG,
        "certificate_pem": EDGE.certificate_pem,
        "private_key_pem": EDGE.private_key_pem,
        "fingerprint_algorithm": "sha-256",
        "remote_fingerprint": fingerprint(shared_certificate()),
        "dtls_is_client": True,
        "payload_type": PAYLOAD_TYPE,
        "local_ssrc": SSRC,
        "remote_ssrc": REMOTE_SSRC,
        "client_receives": True,
        "cname": "rtc_test",
        "unix_offset_ns": 1_700_000_000_000_000_000,
    }
    return SessionParameters(**(values | changes))  # type: ignore[arg-type]


class Client:
    """The other end: STUN, DTLS in the role that is left, SRTP. No network between."""

    def __init__(self, **changes: object) -> None:
        p = parameters(**changes)
        self.session = MediaSession(p, START_NS)
        self.now_ns = START_NS
        self.dtls = DtlsEndpoint(
            shared_certificate().certificate_pem,
            shared_certificate().private_key_pem,
            "sha-256",
            fingerprint(EDGE),
            is_client=not p.dtls_is_client,
        )
        self.srtp: SrtpSession | None = None
        self.events: list[Event] = []
        self.received: list[RtpPacket] = []
        self.rtcp: list[object] = []
        self.stun: list[bytes] = []

    def check(self, source: Address = CLIENT, pwd: str = PWD) -> None:
        request = encode_check(f"{LOCAL_UFRAG}:{REMOTE_UFRAG}", pwd, tie_breaker=7)
        self.send(request, source)

    def send(self, datagram: bytes, source: Address = CLIENT, after_ms: int = 0) -> None:
        self.now_ns += after_ms * MS
        try:
            self.session.handle_datagram(
                classify(datagram), datagram, source, LOCAL_IP, self.now_ns, self.now_ns
            )
        finally:
            self.exchange()

    def exchange(self) -> None:
        """Carry datagrams to and fro until nobody has anything to say."""
        while True:
            self.events += self.session.poll_event()
            transmits = self.session.poll_transmit()
            for t in transmits:
                assert t.client == CLIENT
                assert t.local_ip == LOCAL_IP
                self._receive(t.datagram)
            answers = self.dtls.poll_transmit()
            for datagram in answers:
                if self.session.state is State.ENDED:
                    break  # it answers close_notify with its own
                self.session.handle_datagram(
                    Demux.DTLS, datagram, CLIENT, LOCAL_IP, self.now_ns, self.now_ns
                )
            if not transmits and not answers:
                return

    def _receive(self, datagram: bytes) -> None:
        kind = classify(datagram)
        if kind is Demux.STUN:
            self.stun.append(datagram)
        elif kind is Demux.DTLS:
            self.dtls.handle_datagram(datagram, self.now_ns)
            if self.dtls.state == "connected" and self.srtp is None:
                self.srtp = SrtpSession(self.dtls.srtp_profile, *self.dtls.srtp_keys())
        elif is_rtcp(datagram):
            assert self.srtp is not None
            self.rtcp += parse_rtcp(self.srtp.unprotect_rtcp(datagram))
        else:
            assert self.srtp is not None
            self.received.append(parse_rtp(self.srtp.unprotect_rtp(datagram)))

    def connect(self) -> Client:
        self.check()
        assert self.session.state is State.DTLS or self.session.state is State.CONNECTED
        if self.dtls.state == "new" and not self.session_is_client:
            self.dtls.start(self.now_ns)
            self.exchange()
        assert self.session.state is State.CONNECTED
        return self

    @property
    def session_is_client(self) -> bool:
        return self.session.dtls is not None

    def audio(self, seq: int, payload: bytes, ssrc: int = REMOTE_SSRC, pt: int = 111) -> bytes:
        assert self.srtp is not None
        packet = RtpPacket(pt, seq == 0, seq, seq * 960, ssrc, payload)
        return self.srtp.protect_rtp(encode_rtp(packet))

    def run_until(self, end_ns: int) -> None:
        """Virtual time: fire the session's timers as they come due."""
        while True:
            due_ns = self.session.next_timeout()
            if due_ns is None or due_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, due_ns)
            self.session.handle_timer(self.now_ns)
            self.exchange()
        self.now_ns = max(self.now_ns, end_ns)

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, Ended)]


VOICE = encode_voice(synthetic_voice(1.0))


@pytest.mark.parametrize("dtls_is_client", [True, False])
def test_a_call_goes_down_the_states(dtls_is_client: bool) -> None:
    client = Client(dtls_is_client=dtls_is_client)
    client.check()
    if not dtls_is_client:
        client.dtls.start(client.now_ns)
        client.exchange()
    states = [event.state for event in client.events if isinstance(event, StateChanged)]
    assert states == [State.ICE, State.DTLS, State.CONNECTED]
    assert client.dtls.state == "connected"
    response = parse_check_response(client.stun[0], PWD, 0)
    assert response is not None
    assert response.ok
    assert response.mapped == (CLIENT.host, CLIENT.port)


def test_nothing_exists_before_a_check_has_proved_itself() -> None:
    client = Client()
    with pytest.raises(BadPacket, match="drop_session_stun_bad_integrity"):
        client.check(pwd="a guess of twenty-four ch")
    assert client.session.state is State.NEW
    assert client.session.dtls is None
    assert client.session.uplink is None
    assert client.stun == []


def test_a_role_conflict_is_answered_and_starts_nothing() -> None:
    from aioice import stun

    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    message.attributes["USERNAME"] = f"{LOCAL_UFRAG}:{REMOTE_UFRAG}"
    message.attributes["ICE-CONTROLLED"] = 5
    message.attributes["PRIORITY"] = 1
    message.add_message_integrity(PWD.encode())
    client = Client()
    client.send(bytes(message))
    response = parse_check_response(client.stun[0], PWD, 0)
    assert response is not None
    assert response.error_code == 487
    assert client.session.state is State.NEW


def test_the_uplink_is_bit_exact_without_loss() -> None:
    client = Client().connect()
    uplink = client.session.uplink
    assert uplink is not None
    uplink.set_rate(24000)
    for seq, payload in enumerate(VOICE):
        client.send(client.audio(seq, payload), after_ms=20)
    decoder = OpusDecoder(24000)
    expected = b"".join(decoder.decode(payload) for payload in VOICE)
    frames = uplink.poll()
    assert all(isinstance(frame, AudioFrame) for frame in frames)
    assert b"".join(f.pcm for f in frames if isinstance(f, AudioFrame)) == expected


def test_only_verified_addresses_are_heard() -> None:
    client = Client().connect()
    audio = client.audio(0, VOICE[0])
    for datagram in (audio, b"\x16\xfe\xfd" + bytes(30)):
        with pytest.raises(BadPacket, match="drop_record_unverified_address"):
            client.send(datagram, STRANGER)
    assert client.session.packets_received == 0
    client.send(audio)  # the stranger's copy has not burnt its sequence number
    assert client.session.packets_received == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda c: c.audio(1, VOICE[0])[:-1] + b"\0", "drop_srtp_auth"),
        (lambda c: c.audio(2, VOICE[0], ssrc=99), "drop_rtp_ssrc"),
        (lambda c: c.audio(3, VOICE[0], pt=0), "drop_rtp_payload_type"),
        (lambda c: b"\x16" + bytes(40), "drop_dtls_malformed"),
        (lambda c: b"\x00\x01\x00\x00", "drop_session_stun_malformed"),
    ],
)
def test_no_packet_ends_a_call(make: object, reason: str) -> None:
    client = Client().connect()
    datagram = make(client)  # type: ignore[operator]
    if reason == "drop_srtp_auth" and datagram == client.audio(4, VOICE[0]):
        pytest.skip("the last byte of the tag was 0")
    with pytest.raises(BadPacket, match=reason):
        client.send(datagram)
    assert client.session.state is State.CONNECTED
    client.send(client.audio(10, VOICE[0]))
    assert client.session.packets_received == 1


def test_consent_expires_after_thirty_seconds() -> None:
    client = Client().connect()
    client.run_until(START_NS + 29_999 * MS)
    assert client.session.state is State.CONNECTED
    client.check()
    client.run_until(START_NS + 59_990 * MS)
    assert client.session.state is State.CONNECTED
    client.run_until(START_NS + 60_100 * MS)
    assert client.reasons() == ["consent_expired"]
    assert client.session.next_timeout() is None


def test_the_end_is_said_to_the_client() -> None:
    client = Client().connect()
    client.session.end("hangup", "hung up", client.now_ns)
    client.exchange()
    assert any(isinstance(packet, Bye) and packet.ssrcs == (SSRC,) for packet in client.rtcp)
    assert client.dtls.state == "closed"
    assert client.reasons() == ["hangup"]
    with pytest.raises(BadPacket, match="drop_record_no_session"):
        client.check()


def test_the_clients_close_notify_ends_the_call() -> None:
    client = Client().connect()
    client.dtls.close(client.now_ns)
    client.exchange()
    assert client.reasons() == ["client_closed"]


def test_a_wrong_fingerprint_ends_the_call() -> None:
    client = Client(remote_fingerprint=bytes(32))
    client.check()
    assert client.reasons() == ["dtls_failed"]


def test_a_client_without_dtls_times_out() -> None:
    client = Client()
    client.dtls.close(client.now_ns)  # it answers nothing
    request = encode_check(f"{LOCAL_UFRAG}:{REMOTE_UFRAG}", PWD, tie_breaker=7)
    client.session.handle_datagram(
        Demux.STUN, request, CLIENT, LOCAL_IP, client.now_ns, client.now_ns
    )
    while (due_ns := client.session.next_timeout()) is not None:
        client.session.handle_timer(due_ns)
        client.session.poll_transmit()
    events = client.session.poll_event()
    assert [e.reason for e in events if isinstance(e, Ended)] == ["dtls_timeout"]


def test_a_time_limit_ends_the_call() -> None:
    client = Client(end_deadline_ns=START_NS + 2_000 * MS).connect()
    client.run_until(START_NS + 3_000 * MS)
    assert client.reasons() == ["time_limit"]


def test_a_backend_that_speaks_first_is_heard_in_full() -> None:
    client = Client(dtls_is_client=False)
    client.check()
    downlink = client.session.downlink
    assert downlink is not None
    downlink.set_rate(24000, client.now_ns)
    downlink.push(b"\x10\x20" * 24000, client.now_ns)  # a second, before DTLS
    downlink.mark("greeting", client.now_ns)
    downlink.end(client.now_ns)
    client.run_until(START_NS + 500 * MS)
    assert client.received == []
    client.dtls.start(client.now_ns)
    client.exchange()
    client.run_until(client.now_ns + 1_200 * MS)
    # 50 frames of audio, then the silence that settles the client's jitter buffer.
    assert len(client.received) >= 50
    assert {p.ssrc for p in client.received} == {SSRC}
    stamps = [p.rtp_ts for p in client.received]
    assert {(b - a) & 0xFFFFFFFF for a, b in itertools.pairwise(stamps)} == {960}
    assert client.received[0].marker
    assert any(b"greeting" in frame for frame in downlink.poll_backend_frames())


def test_a_client_that_only_sends_gets_no_audio_but_the_backend_its_clock() -> None:
    client = Client(client_receives=False).connect()
    downlink = client.session.downlink
    assert downlink is not None
    downlink.set_rate(24000, client.now_ns)
    downlink.push(bytes(4800), client.now_ns)
    downlink.mark("end", client.now_ns)
    downlink.end(client.now_ns)
    client.run_until(client.now_ns + 500 * MS)
    assert client.received == []
    assert any(b"end" in frame for frame in downlink.poll_backend_frames())


def test_round_trip_and_loss_come_from_the_clients_reports() -> None:
    client = Client().connect()
    downlink = client.session.downlink
    assert downlink is not None
    downlink.set_rate(24000, client.now_ns)
    downlink.push(bytes(48000), client.now_ns)
    client.run_until(START_NS + 1_100 * MS)
    report = next(p for p in client.rtcp if isinstance(p, SenderReport))
    block = ReportBlock(
        ssrc=SSRC,
        fraction_lost=64,
        cumulative_lost=5,
        highest_seq=100,
        jitter=480,
        last_sr=ntp_middle(report.ntp),
        delay_since_last_sr=65536 // 10,
    )
    assert client.srtp is not None
    compound = encode_rtcp([ReceiverReport(REMOTE_SSRC, (block,))])
    sent_at_ns = START_NS + 1_000 * MS
    client.now_ns = sent_at_ns + 140 * MS
    client.send(client.srtp.protect_rtcp(compound))
    reports = client.session.reports
    assert abs(reports.rtt_ns - 40 * MS) < MS
    assert reports.remote_lost == 5
    assert reports.remote_fraction_lost == 64
    assert reports.remote_jitter_ns == 10 * MS


def test_our_reports_tell_what_we_received() -> None:
    client = Client().connect()
    uplink = client.session.uplink
    assert uplink is not None
    uplink.set_rate(16000)
    for seq in (0, 1, 3, 4):
        client.send(client.audio(seq, VOICE[seq]), after_ms=20)
    client.run_until(START_NS + 1_200 * MS)
    report = next(p for p in client.rtcp if isinstance(p, ReceiverReport) and p.reports)
    assert report.reports[0].ssrc == REMOTE_SSRC
    assert report.reports[0].cumulative_lost == 1


def test_channel_data_goes_both_ways() -> None:
    client = Client().connect()
    client.session.send_channel_data(b"from the edge", client.now_ns)
    client.exchange()
    assert client.dtls.poll_app_data() == [b"from the edge"]
    client.dtls.send_app_data(b"from the client")
    client.exchange()
    assert ChannelData(b"from the client") in client.events
