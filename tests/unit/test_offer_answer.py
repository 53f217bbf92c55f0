"""What is agreed from an offer, and the answer's text."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.answer import LocalParameters, encode_answer
from controlplane.offer_answer import CodecRule, Negotiated, Policy, negotiate
from controlplane.sdp import SdpError, parse_sdp

VECTORS = Path(__file__).parent.parent / "vectors" / "sdp"
OFFERS = {
    path.stem: path.read_text().replace("\r\n", "\n") for path in sorted(VECTORS.glob("*.sdp"))
}
CHROMIUM = OFFERS["offer-chromium-156"]
FIREFOX = OFFERS["offer-firefox-153"]
FINGERPRINT = ":".join(["AB"] * 32)
LOCAL = LocalParameters(
    ice_ufrag="U" * 24,
    ice_pwd="P" * 24,
    fingerprint_sha256=FINGERPRINT,
    candidates=(("203.0.113.5", 3478), ("2001:db8::5", 3478)),
    ssrc=0x01020304,
    cname="rtc_0123",
    session_id=1234567890123456789,
)
AUDIO_HEAD = """\
v=0
o=- 1 2 IN IP4 127.0.0.1
s=-
t=0 0
"""
TRANSPORT = f"""\
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuv
a=fingerprint:sha-256 {FINGERPRINT}
a=setup:actpass
"""
AUDIO = f"""\
m=audio 9 UDP/TLS/RTP/SAVPF 111
c=IN IP4 0.0.0.0
a=mid:a
{TRANSPORT}a=rtcp-mux
a=rtpmap:111 opus/48000/2
"""
VIDEO = f"""\
m=video 9 UDP/TLS/RTP/SAVPF 96 97
c=IN IP4 0.0.0.0
a=mid:v
{TRANSPORT}a=rtcp-mux
a=rtpmap:96 VP8/90000
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
"""
DATA = f"""\
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=mid:d
{TRANSPORT}a=sctp-port:5001
"""


def changed(old: str, new: str, offer: str = CHROMIUM) -> str:
    assert old in offer
    return offer.replace(old, new, 1)


def agreed(offer: str, policy: Policy | None = None) -> Negotiated:
    return negotiate(parse_sdp(offer.encode()), policy or Policy())


def answer(offer: str, policy: Policy | None = None) -> str:
    parsed = parse_sdp(offer.encode())
    text = encode_answer(parsed, negotiate(parsed, policy or Policy()), LOCAL)
    assert text.endswith("\r\n")
    return text.replace("\r\n", "\n")


def sections(text: str) -> list[list[str]]:
    """The session's lines, then those of each m= line."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("m="):
            found.append([])
        found[-1].append(line)
    return found


def refusal(offer: str) -> SdpError:
    with pytest.raises(SdpError) as caught:
        agreed(offer)
    return caught.value


def test_chromium() -> None:
    got = agreed(CHROMIUM)
    assert got.audio_payload_type == 111
    assert (got.mid, got.remote_ufrag, got.remote_ssrc) == ("0", "XLSz", 3122472609)
    assert (got.audio_level_ext_id, got.mid_ext_id) == (1, 4)
    assert (got.client_sends, got.client_receives, got.dtls_active) == (True, True, True)
    assert (got.fingerprint_algorithm, got.remote_fingerprint[:2]) == ("sha-256", b"\x9c\x85")
    assert (got.sctp_port, got.sctp_max_message_bytes) == (5000, 262144)
    assert (got.red_payload_type, got.dtmf_payload_type, got.nack) == (None, None, False)
    assert got.bundled == ("0", "1")


def test_firefox_inherits_from_the_session_level() -> None:
    got = agreed(FIREFOX)
    assert got.audio_payload_type == 109
    assert (got.fingerprint_algorithm, got.remote_fingerprint[:2]) == ("sha-256", b"\x17\x6d")
    assert (got.audio_level_ext_id, got.mid_ext_id) == (1, 3)
    assert got.sctp_max_message_bytes == 262144  # capped: it takes 1 GiB
    inactive = changed("a=sendrecv\na=fingerprint", "a=inactive\na=fingerprint", FIREFOX)
    assert agreed(inactive).client_sends  # the section's own direction counts
    inherited = changed("0.0.0.0\na=sendrecv\n", "0.0.0.0\n", inactive)
    assert not agreed(inherited).client_sends


def test_aiortc_strongest_fingerprint_wins() -> None:
    got = agreed(OFFERS["offer-aiortc-1.16"])
    assert (got.fingerprint_algorithm, len(got.remote_fingerprint)) == ("sha-512", 64)
    assert got.remote_fingerprint[:2] == b"\xe8\xe8"


def test_whole_answer_to_chromium() -> None:
    expected = f"""\
v=0
o=- 1234567890123456789 2 IN IP4 127.0.0.1
s=-
t=0 0
a=ice-lite
a=group:BUNDLE 0 1
a=msid-semantic:WMS *
m=audio 3478 UDP/TLS/RTP/SAVPF 111
c=IN IP4 203.0.113.5
a=mid:0
a=sendrecv
a=ice-ufrag:UUUUUUUUUUUUUUUUUUUUUUUU
a=ice-pwd:PPPPPPPPPPPPPPPPPPPPPPPP
a=fingerprint:sha-256 {FINGERPRINT}
a=setup:active
a=candidate:1 1 udp 2130706431 203.0.113.5 3478 typ host
a=candidate:2 1 udp 2130706175 2001:db8::5 3478 typ host
a=end-of-candidates
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;useinbandfec=1;stereo=0
a=extmap:1/recvonly urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=extmap:4/recvonly urn:ietf:params:rtp-hdrext:sdes:mid
a=msid:earshot earshot-audio
a=ssrc:16909060 cname:rtc_0123
a=ssrc:16909060 msid:earshot earshot-audio
m=application 3478 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 203.0.113.5
a=mid:1
a=ice-ufrag:UUUUUUUUUUUUUUUUUUUUUUUU
a=ice-pwd:PPPPPPPPPPPPPPPPPPPPPPPP
a=fingerprint:sha-256 {FINGERPRINT}
a=setup:active
a=sctp-port:5000
a=max-message-size:65536
"""
    assert answer(CHROMIUM) == expected


@pytest.mark.parametrize("name", OFFERS)
def test_answers_are_valid_sdp_with_one_section_for_each_offered(name: str) -> None:
    offer = parse_sdp(OFFERS[name].encode())
    text = encode_answer(offer, negotiate(offer, Policy()), LOCAL)
    parsed = parse_sdp(text.encode())
    assert parsed.ice_lite
    assert [(m.kind, m.protocol, m.mid) for m in parsed.media] == [
        (m.kind, m.protocol, m.mid) for m in offer.media
    ]
    for media in parsed.media:
        assert (media.ice_ufrag, media.setup) == ("U" * 24, "active")


@pytest.mark.parametrize("name", OFFERS)
async def test_aiortc_can_parse_the_answer(name: str) -> None:
    from aiortc.sdp import SessionDescription

    offer = parse_sdp(OFFERS[name].encode())
    parsed = SessionDescription.parse(encode_answer(offer, negotiate(offer, Policy()), LOCAL))
    audio, data = parsed.media
    assert audio.dtls is not None
    assert audio.dtls.role == "client"
    assert audio.ice is not None
    assert audio.ice.iceLite
    assert [c.ip for c in audio.ice_candidates] == ["203.0.113.5", "2001:db8::5"]
    assert audio.ice_candidates_complete
    assert [codec.mimeType for codec in audio.rtp.codecs] == ["audio/opus"]
    assert data.sctp_port == 5000


def test_ipv6_first() -> None:
    offer = parse_sdp(CHROMIUM.encode())
    local = LocalParameters("U" * 24, "P" * 24, FINGERPRINT, (("::1", 7),), 1, "c", 2)
    text = encode_answer(offer, negotiate(offer, Policy()), local)
    assert "m=audio 7 " in text
    assert "c=IN IP6 ::1\r\n" in text
    assert "udp 2130706431 ::1 7 typ host" in text


@pytest.mark.parametrize(
    ("offered", "answered", "active"),
    [("actpass", "active", True), ("passive", "active", True), ("active", "passive", False)],
)
def test_setup(offered: str, answered: str, active: bool) -> None:
    offer = CHROMIUM.replace("a=setup:actpass", f"a=setup:{offered}")
    assert agreed(offer).dtls_active is active
    assert answer(offer).count(f"a=setup:{answered}\n") == 2


def test_setup_left_out_means_active_and_holdconn_is_refused() -> None:
    assert not agreed(CHROMIUM.replace("a=setup:actpass\n", "")).dtls_active
    assert refusal(changed("a=setup:actpass", "a=setup:holdconn")).code == "sdp_setup"


@pytest.mark.parametrize(
    ("offered", "answered", "sends", "receives"),
    [
        ("sendrecv", "sendrecv", True, True),
        ("sendonly", "recvonly", True, False),
        ("recvonly", "sendonly", False, True),
        ("inactive", "inactive", False, False),
    ],
)
def test_direction(offered: str, answered: str, sends: bool, receives: bool) -> None:
    offer = changed("a=sendrecv", f"a={offered}")
    got = agreed(offer)
    assert (got.client_sends, got.client_receives) == (sends, receives)
    audio = sections(answer(offer))[1]
    assert f"a={answered}" in audio
    assert any(line.startswith("a=msid:") for line in audio) is receives
    assert any(line.startswith("a=ssrc:") for line in audio) is receives
    assert any(line.startswith("a=extmap:") for line in audio) is sends


def test_no_direction_means_sendrecv() -> None:
    assert agreed(changed("a=sendrecv\n", "")).client_receives


def test_video_is_rejected_in_place_and_left_out_of_bundle() -> None:
    other = VIDEO.replace("ufrag:abcd", "ufrag:efgh")  # a transport of its own
    text = answer(AUDIO_HEAD + "a=group:BUNDLE v a d\n" + other + AUDIO + DATA)
    session, video, audio, data = sections(text)
    assert "a=group:BUNDLE a d" in session
    assert video[0] == "m=video 0 UDP/TLS/RTP/SAVPF 96"
    assert {"a=mid:v", "a=inactive"} <= set(video)
    assert not any(line.startswith("a=candidate") for line in video)
    assert audio[0].startswith("m=audio 3478 ")
    assert any(line.startswith("a=candidate") for line in audio)
    assert data[0].startswith("m=application 3478 ")


def test_the_first_of_several_audio_sections_is_taken() -> None:
    second = AUDIO.replace("a=mid:a", "a=mid:b")
    text = answer(AUDIO_HEAD + "a=group:BUNDLE a b\n" + AUDIO + second)
    session, first, other = sections(text)
    assert "a=group:BUNDLE a" in session
    assert first[0] == "m=audio 3478 UDP/TLS/RTP/SAVPF 111"
    assert other[0] == "m=audio 0 UDP/TLS/RTP/SAVPF 111"


def test_an_audio_section_that_is_switched_off_is_passed_over() -> None:
    off = AUDIO.replace("m=audio 9", "m=audio 0").replace("a=mid:a", "a=mid:z")
    got = agreed(AUDIO_HEAD + "a=group:BUNDLE a\n" + off + AUDIO)
    assert (got.audio_index, got.mid) == (1, "a")


def test_the_tagged_section_carries_the_transport() -> None:
    data = DATA.replace("a=ice-ufrag:abcd", "a=ice-ufrag:tagged")
    offer = AUDIO_HEAD + "a=group:BUNDLE d a\n" + AUDIO + data
    assert agreed(offer).remote_ufrag == "tagged"
    session, audio, answered = sections(answer(offer))
    assert "a=group:BUNDLE d a" in session
    assert not any(line.startswith("a=candidate") for line in audio)
    assert any(line.startswith("a=candidate") for line in answered)


@pytest.mark.parametrize("chromium", [True, False])
def test_audio_behind_a_video_whose_transport_it_shares(chromium: bool) -> None:
    """bundlePolicy max-bundle: only the first section has a transport, so the
    video is kept, inactive. Chromium refuses an answer that rejects it."""
    bare = AUDIO.replace(TRANSPORT, "a=bundle-only\n").replace("m=audio 9", "m=audio 0")
    bare = AUDIO if chromium else bare
    offer = AUDIO_HEAD + "a=group:BUNDLE v a\n" + VIDEO + bare
    got = agreed(offer)
    assert (got.remote_ufrag, got.mid) == ("abcd", "a")
    assert (got.idle_index, got.transport_index) == (0, 0)
    session, video, audio = sections(answer(offer))
    assert "a=group:BUNDLE v a" in session
    assert video[0] == "m=video 3478 UDP/TLS/RTP/SAVPF 96"
    assert {"a=inactive", "a=rtcp-mux", "a=rtpmap:96 VP8/90000"} <= set(video)
    assert any(line.startswith("a=candidate") for line in video)
    assert audio[0].startswith("m=audio 3478 ")


def test_bundle_only_audio_behind_a_section_that_cannot_be_kept() -> None:
    bare = AUDIO.replace(TRANSPORT, "a=bundle-only\n").replace("m=audio 9", "m=audio 0")
    video = VIDEO.replace("a=rtpmap:96 VP8/90000\n", "")
    offer = AUDIO_HEAD + "a=group:BUNDLE v a\n" + video + bare
    assert (agreed(offer).idle_index, agreed(offer).remote_ufrag) == (None, "abcd")
    assert "m=video 0 UDP/TLS/RTP/SAVPF 96\n" in answer(offer)


def test_a_section_with_a_port_is_tagged_before_a_bundle_only_one() -> None:
    bare = AUDIO.replace(TRANSPORT, "a=bundle-only\n").replace("m=audio 9", "m=audio 0")
    got = agreed(AUDIO_HEAD + "a=group:BUNDLE a d\n" + bare + DATA)
    assert got.bundled == ("d", "a")
    assert got.transport_index == 1


def test_audio_alone_needs_no_bundle() -> None:
    text = answer(AUDIO_HEAD + AUDIO)
    assert "BUNDLE" not in text
    assert "a=candidate:1 " in text


def test_no_mid_at_all() -> None:
    text = answer(AUDIO_HEAD + AUDIO.replace("a=mid:a\n", ""))
    assert "a=mid" not in text
    assert agreed(AUDIO_HEAD + AUDIO.replace("a=mid:a\n", "")).mid_ext_id is None


def test_data_channel_variants() -> None:
    head = AUDIO_HEAD + "a=group:BUNDLE a d\n" + AUDIO
    assert agreed(head + DATA).sctp_port == 5001
    assert agreed(head + DATA).sctp_max_message_bytes == 65536  # RFC 8841 section 6.1
    assert agreed(head + DATA + "a=max-message-size:0\n").sctp_max_message_bytes == 262144
    assert agreed(head + DATA + "a=max-message-size:900\n").sctp_max_message_bytes == 900
    tcp = DATA.replace("UDP/DTLS/SCTP", "TCP/DTLS/SCTP")
    assert "m=application 3478 TCP/DTLS/SCTP webrtc-datachannel\n" in answer(head + tcp)
    legacy = DATA.replace("UDP/DTLS/SCTP webrtc-datachannel", "DTLS/SCTP 5000").replace(
        "a=sctp-port:5001", "a=sctpmap:5000 webrtc-datachannel 1024"
    )
    assert agreed(head + legacy).sctp_port == 0
    assert "m=application 0 DTLS/SCTP 5000\n" in answer(head + legacy)
    assert "a=group:BUNDLE a\n" in answer(head + legacy)
    portless = refusal(head + DATA.replace("a=sctp-port:5001\n", ""))
    assert portless.code == "sdp_no_sctp_port"
    assert str(portless).startswith("line 15 ")


def test_a_data_channel_outside_of_the_bundle_is_rejected() -> None:
    other = AUDIO_HEAD + "a=group:BUNDLE a\na=group:BUNDLE d\n" + AUDIO + DATA
    assert agreed(other).data_index is None
    assert "m=application 0 " in answer(other)


@pytest.mark.parametrize("digest", ["sha-384", "sha-512"])
def test_stronger_fingerprints(digest: str) -> None:
    size = {"sha-384": 48, "sha-512": 64}[digest]
    line = f"a=fingerprint:{digest.upper()} {':'.join(['cd'] * size)}\n"
    got = agreed(AUDIO_HEAD + AUDIO + line)
    assert (got.fingerprint_algorithm, got.remote_fingerprint) == (digest, b"\xcd" * size)


def test_extensions_that_cannot_be_used_are_left_out() -> None:
    def ids(line: str) -> int | None:
        return agreed(AUDIO_HEAD + AUDIO + line).audio_level_ext_id

    uri = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
    assert ids(f"a=extmap:14 {uri} vad=on\n") == 14
    assert ids(f"a=extmap:3/sendonly {uri}\n") == 3
    assert ids(f"a=extmap:3/recvonly {uri}\n") is None
    assert ids(f"a=extmap:15 {uri}\n") is None
    assert ids(f"a=extmap:4096 {uri}\n") is None


def test_policy_nack_goes_into_the_answer_alone() -> None:
    assert agreed(CHROMIUM, Policy(nack=True)).nack
    assert "a=rtcp-fb:111 nack\n" in answer(CHROMIUM, Policy(nack=True))
    assert "rtcp-fb" not in answer(CHROMIUM)


def test_policy_codecs_in_order_of_preference() -> None:
    pcmu = CodecRule("pcmu", "pcmu", 8000, 1)
    policy = Policy(codecs=(pcmu,))
    assert agreed(CHROMIUM, policy).audio_payload_type == 0
    assert "a=rtpmap:0 pcmu/8000\n" in answer(CHROMIUM, policy)
    assert agreed(CHROMIUM, Policy(codecs=(*Policy().codecs, pcmu))).codec.name == "opus"


NO_FINGERPRINT = "\n".join(
    line for line in CHROMIUM.splitlines() if not line.startswith("a=fingerprint")
)
SHA1 = ":".join(["AB"] * 20)


@pytest.mark.parametrize(
    ("offer", "number", "code", "words"),
    [
        (AUDIO_HEAD, 1, "sdp_no_audio", "no m= line at all"),
        (AUDIO_HEAD + VIDEO + DATA, 5, "sdp_no_audio", "first of its 2 sections"),
        (AUDIO_HEAD + AUDIO.replace("audio 9", "audio 0"), 5, "sdp_no_audio", "switched on"),
        (changed("UDP/TLS/RTP/SAVPF", "RTP/AVP"), 8, "sdp_no_dtls_srtp", "DTLS-SRTP"),
        (NO_FINGERPRINT, 8, "sdp_no_fingerprint", "no a=fingerprint"),
        (
            AUDIO_HEAD + AUDIO.replace(f"sha-256 {FINGERPRINT}", f"sha-1 {SHA1}"),
            10,
            "sdp_weak_fingerprint",
            "not with sha-1 alone",
        ),
        (
            AUDIO_HEAD + AUDIO.replace(f"sha-256 {FINGERPRINT}", "md99 AB"),
            10,
            "sdp_weak_fingerprint",
            "md99",
        ),
        (changed("opus/48000/2", "opus/48000"), 8, "sdp_no_codec", "spoken are opus/48000"),
        (changed("opus/48000/2", "speex/8000"), 8, "sdp_no_codec", "speex, red, G722, PCMU"),
        (
            changed("SAVPF 111 ", "SAVPF 72 ").replace("rtpmap:111", "rtpmap:72"),
            26,
            "sdp_payload_type",
            "RFC 5761",
        ),
        (changed("a=rtcp-mux\n", ""), 8, "sdp_no_rtcp_mux", "rtcp-mux"),
        (changed("a=group:BUNDLE 0 1\n", ""), 7, "sdp_no_bundle", "line 38"),
        (changed("a=group:BUNDLE 0 1", "a=group:BUNDLE 1"), 8, "sdp_no_bundle", "BUNDLE"),
        (
            AUDIO_HEAD + AUDIO.replace("audio 9", "audio 0") + "a=bundle-only\n",
            5,
            "sdp_no_bundle",
            "outside of any",
        ),
        (CHROMIUM.replace("a=ice-ufrag:XLSz\n", ""), 8, "sdp_no_ice", "ice-ufrag"),
        (
            CHROMIUM.replace("a=ice-pwd:ExqKUmd3r6pYoxQVyIT70oQm\n", ""),
            8,
            "sdp_no_ice",
            "ice-pwd",
        ),
        (changed("a=extmap-allow-mixed", "a=ice-lite"), 6, "sdp_ice_lite", "ICE-lite"),
    ],
)
def test_refusals_name_the_line(offer: str, number: int, code: str, words: str) -> None:
    error = refusal(offer)
    assert error.code == code
    assert error.line is not None
    assert error.line.number == number
    assert str(error).startswith(f"line {number} ")
    assert words in str(error)
