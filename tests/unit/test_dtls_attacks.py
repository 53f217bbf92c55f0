"""What somebody without keys can send, from an address that ICE has verified."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.dtls import (
    MAX_APP_DATA_BYTES,
    MAX_HANDSHAKE_BYTES,
    MAX_HELD_RECORDS,
    MAX_MESSAGE_BYTES,
    DtlsEndpoint,
)
from dataplane.proto.dtls_finished import _prf
from dataplane.proto.dtls_record import parse_records
from dataplane.proto.errors import BadPacket
from tests.support.dtls_network import (
    MS,
    Network,
    Peer,
    PlainOpenSsl,
    certificate,
    endpoint,
    pair,
)

MALFORMED = "drop_dtls_malformed"
LIMIT = "drop_dtls_limit"


def record(
    content_type: int, body: bytes, epoch: int = 0, seq: int = 900, version: int = 0xFEFD
) -> bytes:
    return (
        struct.pack("!BHH", content_type, version, epoch)
        + seq.to_bytes(6, "big")
        + struct.pack("!H", len(body))
        + body
    )


def fragment(
    message_type: int, body: bytes, *, length: int | None = None, seq: int = 0, offset: int = 0
) -> bytes:
    total = len(body) if length is None else length
    return (
        bytes([message_type])
        + total.to_bytes(3, "big")
        + seq.to_bytes(2, "big")
        + offset.to_bytes(3, "big")
        + len(body).to_bytes(3, "big")
        + body
    )


FATAL = [record(21, bytes([2, description])) for description in (0, 10, 20, 40, 80)]

# Each is refused with one counter, whatever the stage.
GARBAGE = [
    b"\x16",
    b"\x16" * 12,
    b"\x16" * 40,
    bytes(64),
    *FATAL,
    record(21, b"\x01\x00"),  # close_notify
    record(21, b"\x02"),
    record(23, b"data"),
    record(24, b"\x01\x00\x00"),  # heartbeat
    record(25, b"connection id"),
    record(22, b""),
    record(22, fragment(2, b"x"), version=0xFEFE),
    record(22, fragment(2, b"x"), version=0x0303),
    record(22, fragment(2, b"x"), epoch=2),
    record(22, fragment(2, b"x"), epoch=0xFFFF),
    record(23, bytes(40), epoch=1, version=0xFEFF),
    record(22, bytes(20))[:-1],
    record(22, bytes(20)) + b"\x16",
]

# During the handshake only: afterwards plaintext handshake records are somebody's retransmission.
HANDSHAKE_GARBAGE = [
    record(20, b"\x02"),
    record(20, b"\x01\x01"),
    record(22, b"\x02"),
    record(22, fragment(2, b"")[:11]),
    record(22, fragment(2, b"x")[:-1]),
    record(22, fragment(2, b"x" * 50, length=20)),
    record(22, fragment(2, b"x" * 20, length=50, offset=40)),
    record(22, fragment(2, b"", length=50)),
    record(22, fragment(2, b"x", seq=13)),
    record(22, fragment(2, b"x", seq=0xFFFF)),
    record(22, fragment(20, b"x" * 12, seq=5)),  # Finished in plaintext
    record(22, fragment(99, b"x")),
]

# Cannot be told from what a peer may send early, or is refused by OpenSSL in silence.
QUIET = [
    record(23, bytes(40), epoch=1),
    record(22, bytes(48), epoch=1),
    record(21, bytes(26), epoch=1),
    record(23, b"\0", epoch=1),
    record(20, b"\x01", epoch=1),
    record(23, bytes(1900), epoch=1, seq=2**48 - 1),
]


def test_garbage_at_every_stage() -> None:
    stages = Counter[str]()

    def inject(peer: Peer, datagram: bytes, now_ns: int) -> None:
        stages[peer.state] += 1
        for garbage in GARBAGE + HANDSHAKE_GARBAGE:
            with pytest.raises(BadPacket) as caught:
                peer.handle_datagram(garbage, now_ns)
            assert caught.value.reason == MALFORMED
        for garbage in QUIET:
            peer.handle_datagram(garbage, now_ns)

    client, server = pair()
    network = Network((client, server), before_delivery=inject)
    network.handshake()
    assert (client.state, server.state) == ("connected", "connected")
    assert stages["handshaking"] == 4
    assert network.drops == []


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_at_every_stage(seed: int) -> None:
    rng = random.Random(seed)

    def inject(peer: Peer, datagram: bytes, now_ns: int) -> None:
        for _ in range(20):
            garbage = bytes([rng.randrange(20, 64)]) + rng.randbytes(rng.randrange(0, 200))
            with pytest.raises(BadPacket):
                peer.handle_datagram(garbage, now_ns)

    client, server = pair()
    Network((client, server), before_delivery=inject).handshake()
    assert (client.state, server.state) == ("connected", "connected")


def test_every_truncation_of_every_flight() -> None:
    """Whole records of a datagram that was cut would count, but a cut leaves it malformed."""

    def inject(peer: Peer, datagram: bytes, now_ns: int) -> None:
        ends = {0}
        for each in parse_records(datagram):
            ends.add(max(ends) + len(each.data))
        for length in set(range(len(datagram))) - ends:
            with pytest.raises(BadPacket) as caught:
                peer.handle_datagram(datagram[:length], now_ns)
            assert caught.value.reason == MALFORMED

    client, server = pair()
    Network((client, server), before_delivery=inject).handshake()
    assert (client.state, server.state) == ("connected", "connected")


def assert_talks(network: Network, client: DtlsEndpoint, server: DtlsEndpoint) -> None:
    assert client.send_app_data(b"up")
    assert server.send_app_data(b"down")
    network.exchange()
    assert (client.poll_app_data(), server.poll_app_data()) == ([b"down"], [b"up"])
    assert (client.state, server.state) == ("connected", "connected")


def test_a_connected_session_outlives_everything_unauthenticated() -> None:
    client, server = pair()
    network = Network((client, server))
    network.handshake()
    replays = [datagram for _, _, datagram in network.sent]
    for peer in (client, server):
        for garbage in GARBAGE:
            with pytest.raises(BadPacket) as caught:
                peer.handle_datagram(garbage, 0)
            assert caught.value.reason == MALFORMED
        for garbage in QUIET + HANDSHAKE_GARBAGE + replays:
            peer.handle_datagram(garbage, 0)
        # ES2023: a fresh ClientHello, with no cipher at all.
        peer.handle_datagram(record(22, fragment(1, b"\xfe\xfd" + bytes(40)), seq=0), 0)
    assert_talks(network, client, server)


def test_tampered_and_replayed_app_data_is_dropped_in_silence() -> None:
    client, server = pair()
    network = Network((client, server))
    network.handshake()
    client.send_app_data(b"genuine")
    (genuine,) = client.poll_transmit()
    for bit in range(13 * 8, len(genuine) * 8):
        tampered = bytearray(genuine)
        tampered[bit // 8] ^= 1 << bit % 8
        server.handle_datagram(bytes(tampered), 0)
    assert server.poll_app_data() == []
    for _ in range(3):
        server.handle_datagram(genuine, 0)
    assert server.poll_app_data() == [b"genuine"]
    assert_talks(network, client, server)


@settings(max_examples=200)
@given(st.data())
def test_any_record_after_the_handshake(data: st.DataObject) -> None:
    datagram = record(
        data.draw(st.integers(19, 26)),
        data.draw(st.binary(max_size=80)),
        epoch=data.draw(st.integers(0, 2)),
        seq=data.draw(st.integers(0, 2**48 - 1)),
        version=data.draw(st.sampled_from((0xFEFD, 0xFEFF, 0x0303))),
    )
    client, server, network = VICTIMS
    for peer in (client, server):
        network.deliver(peer, datagram)
        assert peer.state == "connected"
        assert peer.poll_app_data() == []


def _victims() -> tuple[DtlsEndpoint, DtlsEndpoint, Network]:
    client, server = pair()
    network = Network((client, server))
    network.handshake()
    return client, server, network


VICTIMS = _victims()


def test_those_victims_still_talk() -> None:
    client, server, network = VICTIMS
    assert_talks(network, client, server)


@pytest.mark.parametrize(
    ("alert", "failure"), [(b"\x01\x00", ""), (b"\x02\x28", "fatal_alert"), (b"\x01\x5a", None)]
)
def test_only_an_authenticated_alert_ends_a_session(alert: bytes, failure: str | None) -> None:
    """close_notify and a fatal alert end it, a warning (user_canceled) does not."""
    client = endpoint(True)
    peer = PlainOpenSsl(False)
    network = Network((client, peer))
    network.handshake()
    for forged in (record(21, alert), record(21, alert + bytes(24), epoch=1)):
        network.deliver(client, forged)
    assert client.state == "connected"
    network.deliver(client, seal_as_server(peer, 21, alert, seq=7))
    if failure is None:
        assert client.state == "connected"
    else:
        assert (client.state, client.failure) == ("closed", failure)


def seal_as_server(peer: PlainOpenSsl, content_type: int, plaintext: bytes, seq: int) -> bytes:
    secret, client_random, server_random = (
        peer.connection.master_key(),
        peer.connection.client_random(),
        peer.connection.server_random(),
    )
    assert secret is not None
    assert client_random is not None
    assert server_random is not None
    aes256 = "AES256" in str(peer.connection.get_cipher_name())
    size, digest = (32, "sha384") if aes256 else (16, "sha256")
    block = _prf(secret, b"key expansion" + server_random + client_random, 2 * size + 8, digest)
    key, salt = block[size : 2 * size], block[2 * size + 4 :]
    number = b"\0\1" + seq.to_bytes(6, "big")
    header = bytes([content_type]) + b"\xfe\xfd"
    nonce = b"forgery!"
    sealed = nonce + AESGCM(key).encrypt(
        salt + nonce, plaintext, number + header + len(plaintext).to_bytes(2, "big")
    )
    return header + number + len(sealed).to_bytes(2, "big") + sealed


def test_renegotiation_is_refused_and_harmless() -> None:
    """An authenticated HelloRequest: a peer of ours that wants a second handshake."""
    client = endpoint(True)
    peer = PlainOpenSsl(False)
    network = Network((client, peer))
    network.handshake()
    network.deliver(client, seal_as_server(peer, 22, fragment(0, b""), seq=7))
    assert client.state == "connected"
    network.deliver(client, seal_as_server(peer, 23, b"still here", seq=8))
    assert client.poll_app_data() == [b"still here"]
    assert network.drops == []


def test_handshake_bytes_are_limited() -> None:
    client, server = pair()
    server.start(0)
    reasons = Counter[str]()
    filler = record(23, bytes(1900), epoch=1)
    for _ in range(MAX_HANDSHAKE_BYTES // len(filler) + 10):
        try:
            server.handle_datagram(filler, 0)
            reasons["taken"] += 1
        except BadPacket as bad:
            reasons[bad.reason] += 1
    assert reasons == {"taken": MAX_HANDSHAKE_BYTES // len(filler), LIMIT: 10}
    assert client.state == "new"


def test_early_records_are_held_few_and_do_not_stop_the_handshake() -> None:
    def inject(peer: Peer, datagram: bytes, now_ns: int) -> None:
        for seq in range(2 * MAX_HELD_RECORDS):
            peer.handle_datagram(record(22, bytes(48), epoch=1, seq=seq + 1), now_ns)

    client, server = pair()
    network = Network((client, server), before_delivery=inject)
    network.handshake()
    assert (client.state, server.state) == ("connected", "connected")
    assert len(client._held) == 0


def test_a_long_message_is_over_the_limit() -> None:
    client, _ = pair()
    client.start(0)
    with pytest.raises(BadPacket) as caught:
        client.handle_datagram(
            record(22, fragment(11, b"x" * 100, length=MAX_MESSAGE_BYTES + 1, seq=1)), 0
        )
    assert caught.value.reason == LIMIT
    assert client.state == "handshaking"


def test_unread_app_data_is_limited() -> None:
    client, server = pair()
    network = Network((client, server))
    network.handshake()
    for _ in range(MAX_APP_DATA_BYTES // 16384 + 2):
        client.send_app_data(bytes(16384))
    for datagram in client.poll_transmit():
        network.deliver(server, datagram)
    assert network.drops == [LIMIT, LIMIT]
    assert sum(map(len, server.poll_app_data())) == MAX_APP_DATA_BYTES
    assert_talks(network, client, server)


def test_one_good_record_redeems_a_datagram() -> None:
    client, server = pair()
    network = Network((client, server))
    network.handshake()
    client.send_app_data(b"good")
    (good,) = client.poll_transmit()
    server.handle_datagram(FATAL[0] + good, 0)
    assert server.poll_app_data() == [b"good"]
    assert server.state == "connected"


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_in_one_flight(seed: int) -> None:
    """A man in the middle spoils one datagram. Whatever he hits, the ends agree on the same keys
    or do not connect, nothing but BadPacket is raised, and the next handshake is none the wiser."""
    rng = random.Random(seed)
    victim = rng.randrange(4)
    seen = 0

    def spoil(index: int, sender: int, datagram: bytes) -> tuple[int, ...]:
        nonlocal seen
        if index != victim:
            return (10 * MS,)
        seen += 1
        spoiled = bytearray(datagram)
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        network.deliver(network.peers[1 - sender], bytes(spoiled))
        return ()

    client, server = pair()
    network = Network((client, server), spoil)
    network.handshake()
    assert seen == 1
    assert network.settled()
    if client.state == server.state == "connected":
        assert client.srtp_keys() == tuple(reversed(server.srtp_keys()))
    assert {client.failure.partition(":")[0], server.failure.partition(":")[0]} <= {
        "", "dtls_timeout", "handshake_failed",
    }  # fmt: skip

    client, server = pair()
    Network((client, server)).handshake()
    assert (client.state, server.state) == ("connected", "connected")


def forged_hello_answer(body: bytes) -> bytes:
    return record(22, fragment(2, body), seq=0)


@pytest.mark.parametrize(
    "forge",
    [
        lambda: record(22, fragment(2, b"\xfe\xfd" + bytes(50), length=400), seq=77),
        lambda: forged_hello_answer(b"\xfe\xfd" + bytes(50)),
    ],
)
def test_what_a_forged_hello_costs(forge: Callable[[], bytes]) -> None:
    """Documented, not defended: a well-formed forgery of the message that is due wins. It ends in
    a failure that is told, never in a connection or an exception."""
    client, server = pair()
    network = Network((client, server))
    network.start()
    network.deliver(client, forge())
    network.run(network.settled)
    assert client.state == "failed"
    assert client.failure == "dtls_timeout" or client.failure.startswith("handshake_failed: ")
    with pytest.raises(RuntimeError):
        client.srtp_keys()


def test_the_certificate_of_the_wrong_peer() -> None:
    """Somebody else answers first, with a certificate of his own and a flawless handshake."""
    client = endpoint(True, remote=certificate("peer"))
    attacker = PlainOpenSsl(False, name="attacker")
    Network((client, attacker)).handshake()
    assert (client.state, client.failure) == ("failed", "fingerprint_mismatch")
