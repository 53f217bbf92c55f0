"""The synthetic client against pieces that are not ours, and its own small parts."""

from __future__ import annotations

import asyncio

import pytest
from aioice import stun

from bench.binding_check import answer_check, encode_check, parse_check_response
from bench.certificate import Certificate
from bench.offer import parse_answer
from bench.speech import synthetic_voice
from tests.support.bad_datagrams import bad_datagrams
from tests.support.client import Peer, until

PWD = "p" * 24


def test_a_check_is_what_rfc_8445_asks_for() -> None:
    datagram = encode_check("server:client", PWD, tie_breaker=9)
    message = stun.parse_message(datagram)
    assert message.check_message_integrity(PWD.encode())
    assert message.attributes["USERNAME"] == "server:client"
    assert message.attributes["ICE-CONTROLLING"] == 9
    assert {"USE-CANDIDATE", "PRIORITY", "FINGERPRINT"} <= message.attributes.keys()
    assert (
        "USE-CANDIDATE"
        not in stun.parse_message(
            encode_check("server:client", PWD, tie_breaker=9, use_candidate=False)
        ).attributes
    )


def test_a_response_counts_only_with_integrity() -> None:
    request = encode_check("server:client", PWD, tie_breaker=9, transaction_id=b"t" * 12)
    good = answer_check(request, ("127.0.0.1", 5000), PWD)
    assert good is not None
    response = parse_check_response(good, PWD, arrival_ns=7)
    assert response is not None
    assert response.ok
    assert (response.transaction_id, response.arrival_ns) == (b"t" * 12, 7)
    assert response.mapped == ("127.0.0.1", 5000)
    foreign = parse_check_response(good, "x" * 24, arrival_ns=7)
    assert foreign is not None
    assert not foreign.ok


def test_what_is_no_response_is_none() -> None:
    request = encode_check("server:client", PWD, tie_breaker=9)
    assert parse_check_response(request, PWD, 0) is None
    assert all(parse_check_response(request[:n], PWD, 0) is None for n in range(len(request)))


def test_a_check_with_another_password_is_not_answered() -> None:
    request = encode_check("server:client", "x" * 24, tie_breaker=9)
    assert answer_check(request, ("127.0.0.1", 5000), PWD) is None


def test_certificates_differ_and_say_their_fingerprint() -> None:
    one, other = Certificate.make(), Certificate.make()
    assert one.fingerprint != other.fingerprint
    assert len(bytes.fromhex(one.fingerprint.replace(":", ""))) == 32


def test_the_voice_is_the_same_at_every_run_and_has_pauses() -> None:
    voice = synthetic_voice(2.5, 8000)
    assert voice == synthetic_voice(2.5, 8000)
    assert len(voice) == 2 * 20000
    assert voice[2 * 16500 : 2 * 17500] == bytes(2000)
    assert max(voice[: 2 * 16000]) > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_bad_datagrams_are_seeded_and_never_whole(seed: int) -> None:
    templates = [encode_check("server:client", PWD, tie_breaker=9), b"\x80\x6f" + bytes(100)]
    streams = [bad_datagrams(seed, templates) for _ in range(2)]
    first = [next(streams[0]) for _ in range(3000)]
    assert first == [next(streams[1]) for _ in range(3000)]
    assert not set(first) & set(templates)
    assert {len(datagram) for datagram in first} >= {0, 2049}
    assert len(set(first)) > 2500


async def test_two_peers_set_up_a_call_with_each_other() -> None:
    """Each checks the other and both take the DTLS roles that SDP gives them, so the whole of
    the client is exercised without the edge."""
    one, other = Peer(), Peer()
    try:
        link(one, other, setup="active")
        link(other, one, setup="passive")
        await asyncio.gather(one.establish(), other.establish())
        packets = [bytes((0xF8,)) + bytes((n,)) * 20 for n in range(5)]
        for packet in packets:
            one.send_audio(packet)
        await other.heard()
        await until(lambda: len(other.media.received) == 5, "five packets")
        assert [packet.payload for packet in other.media.received] == packets
        first = other.media.received[0]
        assert [packet.rtp_ts - first.rtp_ts for packet in other.media.received] == [
            960 * n for n in range(5)
        ]
        one.send_rtcp()
        await until(lambda: other.media.remote.sender_reports >= 1, "a sender report")
        other.send_rtcp()
        await until(lambda: one.media.remote.rtt_ns is not None, "a round trip time")
        assert other.media.remote.cumulative_lost == 0
        assert other.counters.bad_packets == {}
        steps = list(other.timeline.milliseconds())
        assert steps == ["stun", "dtls", "first_audio"]
    finally:
        one.close()
        other.close()


def link(peer: Peer, remote: Peer, *, setup: str) -> None:
    """Tells a peer what the remote's answer would have told it."""
    host, port = remote.sock.getsockname()
    text = remote.offer().text().replace("actpass", setup)
    candidate = f"a=candidate:1 1 udp 1 {host} {port} typ host"
    peer.use_answer(parse_answer(text.replace("a=rtcp-mux", candidate)))
