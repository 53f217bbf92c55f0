"""The synthetic client's SDP."""

from __future__ import annotations

import pytest

from bench.offer import Candidate, Offer, parse_answer

ANSWER = """\
v=0
o=- 1 1 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=ice-lite
m=audio 3478 UDP/TLS/RTP/SAVPF 111 110
c=IN IP4 127.0.0.1
a=ice-ufrag:EAAAAAAAAAAAAAAAAAAAAAAA
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=fingerprint:sha-256 00:01:0A:FF
a=setup:active
a=mid:0
a=candidate:1 1 udp 2130706431 192.0.2.7 3478 typ host
a=candidate:2 1 udp 2130706175 2001:db8::7 3478 typ host
a=candidate:3 1 tcp 1671430143 192.0.2.7 443 typ host tcptype passive
a=ssrc:305419896 cname:earshot
m=application 3478 UDP/DTLS/SCTP webrtc-datachannel
a=mid:1
a=sctp-port:5000
"""


def make_offer(**changes: object) -> Offer:
    fields: dict[str, object] = {
        "ufrag": "abcd",
        "pwd": "p" * 24,
        "fingerprint": "AA:BB",
        "ssrc": 7,
    }
    return Offer(**(fields | changes))  # type: ignore[arg-type]


def test_reads_what_a_client_needs_of_an_answer() -> None:
    answer = parse_answer(ANSWER.replace("\n", "\r\n"))
    assert answer.ufrag == "EAAAAAAAAAAAAAAAAAAAAAAA"
    assert answer.pwd == "abcdefghijklmnopqrstuvwx"
    assert (answer.fingerprint_algorithm, answer.fingerprint) == ("sha-256", b"\x00\x01\x0a\xff")
    assert answer.setup == "active"
    assert answer.payload_types == (111, 110)
    assert (answer.ssrc, answer.sctp_port) == (305419896, 5000)
    assert answer.candidate(ipv6=False) == Candidate("192.0.2.7", 3478, "udp")
    assert answer.candidate(ipv6=True) == Candidate("2001:db8::7", 3478, "udp")


def test_session_level_attributes_count_when_the_media_has_none() -> None:
    lines = [line for line in ANSWER.splitlines() if not line.startswith("a=fingerprint")]
    at = lines.index("a=ice-lite")
    answer = parse_answer("\n".join([*lines[:at], "a=fingerprint:SHA-256 0B", *lines[at:]]))
    assert (answer.fingerprint_algorithm, answer.fingerprint) == ("sha-256", b"\x0b")


@pytest.mark.parametrize("name", ["ice-ufrag", "ice-pwd", "fingerprint", "setup"])
def test_names_what_an_answer_lacks(name: str) -> None:
    text = "\n".join(line for line in ANSWER.splitlines() if not line.startswith(f"a={name}"))
    with pytest.raises(ValueError, match=f"a={name}"):
        parse_answer(text)


def test_refuses_an_answer_that_refuses_the_audio() -> None:
    with pytest.raises(ValueError, match="rejects the audio"):
        parse_answer(ANSWER.replace("m=audio 3478", "m=audio 0"))
    with pytest.raises(ValueError, match="no audio"):
        parse_answer(ANSWER.replace("m=audio", "m=video"))


def test_says_when_a_family_has_no_candidate() -> None:
    answer = parse_answer(ANSWER.replace("a=candidate:2", "a=x-candidate:2"))
    with pytest.raises(LookupError, match="IPv6"):
        answer.candidate(ipv6=True)


def test_an_offer_has_a_browsers_lines_and_no_candidates() -> None:
    text = make_offer().text()
    assert all(line and not line.startswith(" ") for line in text.split("\r\n")[:-1])
    assert text.endswith("\r\n")
    assert "a=candidate" not in text
    assert "m=application" not in text
    assert "a=group:BUNDLE 0\r\n" in text
    for line in (
        "m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126",
        "a=ice-ufrag:abcd",
        "a=fingerprint:sha-256 AA:BB",
        "a=setup:actpass",
        "a=rtpmap:111 opus/48000/2",
        "a=ssrc:7 cname:",
    ):
        assert f"\r\n{line}" in text


def test_an_offer_may_have_a_data_channel_and_candidates() -> None:
    text = make_offer(data_channel=True, candidates=(("127.0.0.1", 4000),)).text()
    assert "a=group:BUNDLE 0 1\r\n" in text
    assert "a=sctp-port:5000\r\n" in text
    assert "a=candidate:1 1 udp 2130706431 127.0.0.1 4000 typ host\r\n" in text
