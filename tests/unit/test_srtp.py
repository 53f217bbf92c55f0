from __future__ import annotations

import hmac
import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from pylibsrtp import Error

from dataplane.proto.errors import BadPacket
from dataplane.proto.srtp import MAX_REMOTE_SSRCS, REPLAY_WINDOW, SrtpSession
from tests.support.dtls_network import Network
from tests.support.dtls_network import pair as dtls_pair

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "srtp.json").read_text())
PROFILES = {1: 30, 7: 28}
TAG_BYTES = {1: 10, 7: 16}

both_profiles = pytest.mark.parametrize("profile", PROFILES)


def pair(profile: int) -> tuple[SrtpSession, SrtpSession]:
    one, other = bytes(range(PROFILES[profile])), bytes(range(100, 100 + PROFILES[profile]))
    return SrtpSession(profile, one, other), SrtpSession(profile, other, one)


def rtp(seq: int, payload: bytes = b"audio", ssrc: int = 0xCAFE) -> bytes:
    return struct.pack("!BBHII", 0x80, 111, seq & 0xFFFF, seq * 960, ssrc) + payload


def rtcp(ssrc: int = 0xCAFE) -> bytes:
    return struct.pack("!BBHI", 0x80, 201, 1, ssrc)


def reason_of(session: SrtpSession, packet: bytes, *, is_rtcp: bool = False) -> str:
    with pytest.raises(BadPacket) as caught:
        (session.unprotect_rtcp if is_rtcp else session.unprotect_rtp)(packet)
    return caught.value.reason


def derive(key: bytes, salt: bytes, label: int, length: int) -> bytes:
    """RFC 3711 section 4.3.1, with key_derivation_rate 0; a GCM salt is padded (RFC 7714 11)."""
    iv = int.from_bytes(salt.ljust(14, b"\0"), "big") ^ label << 48
    counter = (iv << 16).to_bytes(16, "big")
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(length))


def gcm(key: bytes, salt: bytes, packet: bytes, roc: int = 0) -> bytes:
    """RFC 7714 section 8, for a header of 12 bytes."""
    number = packet[8:12] + struct.pack("!I", roc) + packet[2:4]
    iv = bytes(a ^ b for a, b in zip(salt, bytes(2) + number, strict=True))
    return packet[:12] + AESGCM(key).encrypt(iv, packet[12:], packet[:12])


def counter_mode(key: bytes, salt: bytes, auth_key: bytes, packet: bytes, roc: int = 0) -> bytes:
    """RFC 3711 sections 4.1.1 and 4.2, for a header of 12 bytes and a tag of 80 bits."""
    index = roc << 16 | int.from_bytes(packet[2:4], "big")
    ssrc = int.from_bytes(packet[8:12], "big")
    iv = int.from_bytes(salt, "big") << 16 ^ ssrc << 64 ^ index << 16
    encryptor = Cipher(algorithms.AES(key), modes.CTR(iv.to_bytes(16, "big"))).encryptor()
    protected = packet[:12] + encryptor.update(packet[12:])
    return protected + hmac.digest(auth_key, protected + struct.pack("!I", roc), "sha1")[:10]


def test_rfc3711_b3_key_derivation() -> None:
    """libsrtp keeps its keys to itself: the RFC's vector proves the oracle, the oracle libsrtp."""
    vector = {name: bytes.fromhex(value) for name, value in VECTORS["rfc3711 B.3"].items()}
    key, salt = vector["master_key"], vector["master_salt"]
    assert derive(key, salt, 0, 16) == vector["cipher_key"]
    assert derive(key, salt, 1, 20) == vector["auth_key"]
    assert derive(key, salt, 2, 14) == vector["cipher_salt"]
    packet = rtp(0x1234, bytes(range(200)))
    assert SrtpSession(1, key + salt, key + salt).protect_rtp(packet) == counter_mode(
        vector["cipher_key"], vector["cipher_salt"], vector["auth_key"], packet
    )


def test_rfc7714_16_1_1_aead() -> None:
    vector = {name: bytes.fromhex(value) for name, value in VECTORS["rfc7714 16.1.1"].items()}
    assert gcm(vector["key"], vector["salt"], vector["packet"]) == vector["protected"]
    key, salt = bytes(range(16)), bytes(range(60, 72))
    for packet in (vector["packet"], rtp(7, bytes(range(200)))):
        expected = gcm(derive(key, salt, 0, 16), derive(key, salt, 2, 12), packet)
        assert SrtpSession(7, key + salt, key + salt).protect_rtp(packet) == expected


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith("libsrtp")])
def test_libsrtp_vectors(name: str) -> None:
    vector = VECTORS[name]
    key = bytes.fromhex(vector["key"])
    session = SrtpSession(vector["profile"], key, key)
    assert session.protect_rtp(bytes.fromhex(vector["rtp"])).hex() == vector["protected_rtp"]
    assert session.protect_rtcp(bytes.fromhex(vector["rtcp"])).hex() == vector["protected_rtcp"]
    assert session.unprotect_rtp(bytes.fromhex(vector["protected_rtp"])).hex() == vector["rtp"]
    assert session.unprotect_rtcp(bytes.fromhex(vector["protected_rtcp"])).hex() == vector["rtcp"]


@both_profiles
def test_round_trip_both_ways(profile: int) -> None:
    one, other = pair(profile)
    for sender, receiver in ((one, other), (other, one)):
        for seq in range(3):
            packet = rtp(seq, bytes([seq]) * 80)
            protected = sender.protect_rtp(packet)
            assert len(protected) == len(packet) + TAG_BYTES[profile]
            assert packet[12:] not in protected
            assert receiver.unprotect_rtp(protected) == packet
            report = rtcp()
            assert receiver.unprotect_rtcp(sender.protect_rtcp(report)) == report


def test_keys_of_a_handshake() -> None:
    client, server = dtls_pair()
    Network((client, server)).handshake()
    sessions = [SrtpSession(end.srtp_profile, *end.srtp_keys()) for end in (client, server)]
    for sender, receiver in (sessions, reversed(sessions)):
        assert receiver.unprotect_rtp(sender.protect_rtp(rtp(1))) == rtp(1)


@both_profiles
def test_our_own_packets_are_not_the_peers(profile: int) -> None:
    one, _ = pair(profile)
    assert reason_of(one, one.protect_rtp(rtp(1))) == "drop_srtp_auth"
    assert reason_of(one, one.protect_rtcp(rtcp()), is_rtcp=True) == "drop_srtp_auth"


@both_profiles
def test_sequence_wraps(profile: int) -> None:
    one, other = pair(profile)
    for seq in range(65_530, 65_545):
        assert other.unprotect_rtp(one.protect_rtp(rtp(seq))) == rtp(seq)


@both_profiles
def test_every_flipped_bit_and_every_truncation(profile: int) -> None:
    """Dropped under a name of its own, and the genuine packet is good afterwards."""
    one, other = pair(profile)
    other.unprotect_rtp(one.protect_rtp(rtp(1)))
    for is_rtcp, packet in ((False, one.protect_rtp(rtp(2))), (True, one.protect_rtcp(rtcp()))):
        malformed = "drop_rtcp_malformed" if is_rtcp else "drop_rtp_malformed"
        for bit in range(len(packet) * 8):
            tampered = bytearray(packet)
            tampered[bit // 8] ^= 1 << bit % 8
            reason = reason_of(other, bytes(tampered), is_rtcp=is_rtcp)
            assert reason in ("drop_srtp_auth", "drop_srtp_replay", malformed)
            if bit >= 96:
                assert reason == "drop_srtp_auth" or is_rtcp
        for length in range(len(packet)):
            reason = reason_of(other, packet[:length], is_rtcp=is_rtcp)
            assert reason in ("drop_srtp_auth", malformed)
            if length < 8:
                assert reason == malformed
        unprotect = other.unprotect_rtcp if is_rtcp else other.unprotect_rtp
        assert unprotect(packet) == (rtcp() if is_rtcp else rtp(2))


@both_profiles
def test_replay(profile: int) -> None:
    one, other = pair(profile)
    protected = one.protect_rtp(rtp(1))
    report = one.protect_rtcp(rtcp())
    other.unprotect_rtp(protected)
    other.unprotect_rtcp(report)
    for _ in range(200):  # FreeSWITCH ended calls after 100 (CVE-2021-41105)
        assert reason_of(other, protected) == "drop_srtp_replay"
        assert reason_of(other, report, is_rtcp=True) == "drop_srtp_replay"
    assert other.unprotect_rtp(one.protect_rtp(rtp(2))) == rtp(2)


@both_profiles
def test_replay_window(profile: int) -> None:
    """The last packet inside is good, the first outside is too old."""
    one, other = pair(profile)
    late = [one.protect_rtp(rtp(seq)) for seq in range(REPLAY_WINDOW + 1)]
    other.unprotect_rtp(late[-1])
    assert other.unprotect_rtp(late[1]) == rtp(1)
    assert reason_of(other, late[0]) == "drop_srtp_replay"


@both_profiles
def test_many_bad_tags_end_nothing(profile: int) -> None:
    one, other = pair(profile)
    for seq in range(300):
        assert reason_of(other, rtp(seq, bytes(60))) == "drop_srtp_auth"
    assert other.unprotect_rtp(one.protect_rtp(rtp(1))) == rtp(1)


@both_profiles
def test_ssrcs_are_bounded_and_strangers_cost_nothing(profile: int) -> None:
    one, other = pair(profile)
    for ssrc in range(2 * MAX_REMOTE_SSRCS):
        assert reason_of(other, rtp(1, bytes(60), ssrc)) == "drop_srtp_auth"
    for ssrc in range(MAX_REMOTE_SSRCS):
        other.unprotect_rtp(one.protect_rtp(rtp(1, ssrc=ssrc)))
    packet = one.protect_rtp(rtp(1, ssrc=MAX_REMOTE_SSRCS))
    assert reason_of(other, packet) == "drop_rtp_ssrc"
    report = one.protect_rtcp(rtcp(MAX_REMOTE_SSRCS))
    assert reason_of(other, report, is_rtcp=True) == "drop_rtp_ssrc"
    other.unprotect_rtp(one.protect_rtp(rtp(2, ssrc=0)))
    other.unprotect_rtcp(one.protect_rtcp(rtcp(MAX_REMOTE_SSRCS - 1)))


@both_profiles
@given(packet=st.binary(max_size=80))
def test_any_bytes(profile: int, packet: bytes) -> None:
    _, other = pair(profile)
    assert reason_of(other, packet) in ("drop_rtp_malformed", "drop_srtp_auth")
    assert reason_of(other, packet, is_rtcp=True) in ("drop_rtcp_malformed", "drop_srtp_auth")


@both_profiles
def test_long_packets(profile: int) -> None:
    one, other = pair(profile)
    packet = rtp(1, bytes(1344))
    assert other.unprotect_rtp(one.protect_rtp(packet)) == packet
    with pytest.raises(ValueError, match="too long"):
        one.protect_rtp(packet + b"\0")
    assert reason_of(other, rtp(2, bytes(1489))) == "drop_rtp_malformed"
    assert reason_of(other, rtcp() + bytes(1500), is_rtcp=True) == "drop_rtcp_malformed"


@both_profiles
def test_a_sequence_number_is_protected_once(profile: int) -> None:
    """Twice under one nonce would give the key away; the history keeps what was protected."""
    one, _ = pair(profile)
    one.protect_rtp(rtp(1))
    with pytest.raises(Error):
        one.protect_rtp(rtp(1, b"other"))


@pytest.mark.parametrize(
    ("profile", "local", "remote"), [(7, 30, 30), (1, 28, 28), (7, 28, 27), (8, 28, 28), (0, 0, 0)]
)
def test_profiles_and_lengths_that_do_not_fit(profile: int, local: int, remote: int) -> None:
    with pytest.raises(ValueError, match="profile"):
        SrtpSession(profile, bytes(local), bytes(remote))


def test_contexts_are_libsrtps() -> None:
    sender, receiver = pair(7)[0].contexts
    assert sender
    assert receiver
    assert sender != receiver
