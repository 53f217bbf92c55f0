"""What a call refuses to wait for, and to keep, in virtual time."""

from __future__ import annotations

import pytest

from bench.binding_check import encode_check
from bench.certificate import Certificate, shared_certificate
from dataplane.proto.address import Address
from dataplane.proto.backend_frame import Event, FrameReader, parse_payload
from dataplane.proto.demux import Demux
from dataplane.proto.downlink import Downlink
from dataplane.proto.errors import BadPacket
from dataplane.proto.media_session import Ended, MediaSession, SessionParameters, State

MS = 1_000_000
SECOND = 1000 * MS
NOW = 5 * SECOND
PWD = "edgePasswordOf24Chars123"
CLIENT = Address.from_text("192.0.2.7", 50_000)
EDGE = Certificate.make()


def session(dtls_is_client: bool) -> MediaSession:
    return MediaSession(
        SessionParameters(
            local_ufrag="edgeUfrag",
            ice_pwd=PWD,
            remote_ufrag="cliUfrag",
            certificate_pem=EDGE.certificate_pem,
            private_key_pem=EDGE.private_key_pem,
            fingerprint_algorithm="sha-256",
            remote_fingerprint=bytes.fromhex(shared_certificate().fingerprint.replace(":", "")),
            dtls_is_client=dtls_is_client,
            payload_type=111,
            local_ssrc=1,
            remote_ssrc=2,
            client_receives=True,
            cname="rtc_test",
            unix_offset_ns=0,
        ),
        NOW,
    )


def check(call: MediaSession, now_ns: int) -> None:
    request = encode_check("edgeUfrag:cliUfrag", PWD, tie_breaker=7)
    call.handle_datagram(Demux.STUN, request, CLIENT, bytes(16), now_ns, now_ns)


@pytest.mark.parametrize("dtls_is_client", [True, False])
def test_a_client_that_never_speaks_dtls_is_not_waited_for(dtls_is_client: bool) -> None:
    """It keeps its consent all the while."""
    call = session(dtls_is_client)
    now_ns = NOW
    for _ in range(12):
        check(call, now_ns)
        now_ns += SECOND
        while (due_ns := call.next_timeout()) is not None and due_ns <= now_ns:
            call.handle_timer(due_ns)
        if call.state is State.ENDED:
            break
    ended = [event for event in call.poll_event() if isinstance(event, Ended)]
    assert [event.reason for event in ended] == ["dtls_timeout"]
    assert now_ns - NOW <= 11 * SECOND


def downlink() -> Downlink:
    made = Downlink(payload_type=111, ssrc=1, lead_ms=20, complexity=0, bitrate=32_000)
    made.set_rate(48_000, NOW)
    return made


def notices(out: Downlink) -> list[object]:
    reader = FrameReader()
    return [
        parse_payload(kind, payload)
        for frame in out.poll_backend_frames()
        for kind, payload in reader.feed(frame)
    ]


def test_audio_for_a_client_that_is_not_there_yet_is_bounded() -> None:
    """As the playout itself is: what is too much is refused, and the backend is told."""
    out = downlink()
    second = bytes(96_000)
    for _ in range(2000):
        out.push(second, NOW)
    assert sum(1 for _ in out._waiting) <= 100
    told = notices(out)
    assert len(told) == 1
    assert isinstance(told[0], Event)
    assert told[0].value["error"]["type"] == "playout_overrun"
    out.start(NOW)
    assert out.queued_ms == 30_000


def test_marks_that_wait_for_the_client_are_bounded_as_later() -> None:
    out = downlink()
    out.push(bytes(960), NOW)
    for n in range(1024):
        out.mark(f"{n}", NOW)
    with pytest.raises(BadPacket, match="backend_bad_frame"):
        out.mark("one more", NOW)
    out.start(NOW)  # and what was taken is no surprise
    assert notices(out) == []
