from __future__ import annotations

import itertools

import pytest

from dataplane.proto.dtls import (
    FIRST_RESEND_NS,
    HANDSHAKE_TIMEOUT_NS,
    DtlsEndpoint,
)
from dataplane.proto.dtls_record import MAX_DATAGRAM_BYTES, parse_records
from tests.support.dtls_network import (
    MS,
    Network,
    PlainOpenSsl,
    calm,
    certificate,
    endpoint,
    losing,
    pair,
    terrible,
)


def connected_pair() -> tuple[DtlsEndpoint, DtlsEndpoint, Network]:
    client, server = pair()
    network = Network((client, server))
    network.handshake()
    return client, server, network


def assert_connected(client: DtlsEndpoint, server: DtlsEndpoint) -> None:
    assert (client.state, server.state) == ("connected", "connected")
    assert client.srtp_keys() == tuple(reversed(server.srtp_keys()))


def assert_numbers_are_used_once(network: Network) -> None:
    """No epoch and sequence number, and no explicit GCM nonce, serves two records."""
    numbers: set[tuple[int, int, int]] = set()
    nonces: set[tuple[int, bytes]] = set()
    for _, sender, datagram in network.sent:
        assert len(datagram) <= MAX_DATAGRAM_BYTES
        for record in parse_records(datagram):
            number = (sender, record.epoch, record.seq)
            assert number not in numbers
            numbers.add(number)
            if record.epoch:
                assert (sender, record.body[:8]) not in nonces
                nonces.add((sender, record.body[:8]))


def test_handshake_and_keys() -> None:
    client, server, network = connected_pair()
    assert_connected(client, server)
    assert client.srtp_profile == server.srtp_profile == 7
    ours, theirs = client.srtp_keys()
    assert (len(ours), len(theirs)) == (28, 28)  # RFC 7714 12: 16 of key, 12 of salt
    assert ours != theirs
    assert network.now_ns == 40 * MS  # two round trips
    assert len(network.sent) == 4
    assert network.drops == []
    assert client.next_timeout() is None
    assert server.next_timeout() is None


def test_no_keys_before_the_end() -> None:
    client, _ = pair()
    assert client.state == "new"
    assert client.next_timeout() is None
    client.start(0)
    assert client.state == "handshaking"
    client.start(1)
    assert len(client.poll_transmit()) == 1
    assert client.poll_transmit() == []
    assert client.send_app_data(b"early") is False
    with pytest.raises(RuntimeError):
        client.srtp_keys()


@pytest.mark.parametrize("is_client", [True, False])
def test_aes_cm_when_the_peer_has_nothing_else(is_client: bool) -> None:
    ours = endpoint(is_client, remote=certificate("peer"))
    peer = PlainOpenSsl(not is_client, profiles=b"SRTP_AES128_CM_SHA1_80")
    Network((ours, peer)).handshake()
    assert ours.state == "connected"
    assert ours.srtp_profile == 1
    ours_key, theirs_key = ours.srtp_keys()
    assert (len(ours_key), len(theirs_key)) == (30, 30)  # RFC 5764 4.1.2
    # RFC 5764 4.2: client key, server key, client salt, server salt.
    material = peer.connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 60)
    of_client = material[:16] + material[32:46]
    of_server = material[16:32] + material[46:60]
    assert (ours_key, theirs_key) == (
        (of_client, of_server) if is_client else (of_server, of_client)
    )


@pytest.mark.parametrize("is_client", [True, False])
def test_a_peer_without_srtp_fails(is_client: bool) -> None:
    ours = endpoint(is_client, remote=certificate("peer"))
    Network((ours, PlainOpenSsl(not is_client, profiles=b""))).handshake()
    assert (ours.state, ours.failure) == ("failed", "no_srtp_profile")


@pytest.mark.parametrize("name", ["peer", "rsa peer"])
@pytest.mark.parametrize(
    "ciphers",
    [
        b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
        b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384",
        b"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
    ],
)
def test_a_lost_last_flight_costs_one_short_timer(ciphers: bytes, name: str) -> None:
    """RFC 6347 4.2.4: the server's last flight comes again only for a new Finished of ours, in a
    record that is no replay. Here the server has no timer and OpenSSL's own does not run."""
    client = endpoint(True, remote=certificate(name))
    server = PlainOpenSsl(False, ciphers=ciphers, name=name)
    network = Network((client, server), losing(frozenset((3, 5))))
    network.handshake()
    assert client.state == "connected", client.failure
    # Sent at 20 ms, and again at 95 and 245 ms; half a round trip is 10 ms.
    assert network.now_ns == (20 + 75 + 150 + 20) * MS
    assert network.drops == []
    assert_numbers_are_used_once(network)

    assert client.send_app_data(b"to the server")
    server.connection.send(b"to the client")
    network.exchange()
    assert server.received == [b"to the server"]
    assert client.poll_app_data() == [b"to the client"]
    client.close(network.now_ns)
    network.exchange()
    assert server.state == "closed"


def test_every_pattern_of_losses_in_the_first_eight_datagrams() -> None:
    for pattern in itertools.product((False, True), repeat=8):
        client, server = pair()
        lost = frozenset(index for index, is_lost in enumerate(pattern) if is_lost)
        network = Network((client, server), losing(lost))
        network.handshake()
        assert_connected(client, server)
        assert_numbers_are_used_once(network)
        if sum(pattern) <= 1:
            # A lost datagram costs one timer, whichever it was.
            assert network.now_ns <= (40 + 75) * MS


@pytest.mark.parametrize("seed", range(40))
def test_handshake_over_a_terrible_network(seed: int) -> None:
    client, server = pair()
    network = Network((client, server), terrible(seed))
    network.handshake()
    assert_connected(client, server)
    assert_numbers_are_used_once(network)
    network.weather = calm()
    network.exchange()
    assert client.send_app_data(b"up")
    assert server.send_app_data(b"down")
    network.exchange()
    assert (client.poll_app_data(), server.poll_app_data()) == ([b"down"], [b"up"])
    assert_numbers_are_used_once(network)


def test_timer_schedule_and_timeout() -> None:
    """75 ms, doubled at each sending, at most 600 ms apart; given up after 10 s."""
    client, server = pair()
    network = Network((client, server), lambda *_: ())
    network.handshake()
    assert (client.state, client.failure) == ("failed", "dtls_timeout")
    assert (server.state, server.failure) == ("failed", "dtls_timeout")
    assert network.now_ns == HANDSHAKE_TIMEOUT_NS
    at_ms = [at // MS for at, _, _ in network.sent]
    assert at_ms[:5] == [0, 75, 225, 525, 1125]
    assert at_ms[5:] == list(range(1725, 10_000, 600))
    assert client.next_timeout() is None


def test_timer_adapts_to_a_long_round_trip() -> None:
    """RFC 6347 4.2.4.1. With 400 ms there and back only the first flight is sent in vain."""
    client, server = pair()
    network = Network((client, server), calm(200 * MS))
    network.handshake()
    assert_connected(client, server)
    sent_by_client = [at // MS for at, sender, _ in network.sent if sender == 0]
    assert sent_by_client[:3] == [0, 75, 225]
    # Karn: a flight that was sent again measures nothing, and the interval stays.
    assert [at for at in sent_by_client if at >= 400] == [400, 700]


def test_timer_follows_a_measured_round_trip() -> None:
    client, server = pair()
    network = Network((client, server), calm(35 * MS))
    network.start()
    network.run(lambda: len(network.sent) == 3)
    assert network.now_ns == 70 * MS
    assert client.next_timeout() == 70 * MS + max(FIRST_RESEND_NS, 105 * MS)


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-384", "sha-512"])
@pytest.mark.parametrize("is_client", [True, False])
def test_fingerprint(algorithm: str, is_client: bool) -> None:
    remote = certificate("peer" if is_client else "edge")
    ours = endpoint(is_client, algorithm=algorithm)
    network = Network((ours, endpoint(not is_client)))
    network.handshake()
    assert ours.state == "connected"

    wrong = bytearray(remote.fingerprint(algorithm))
    wrong[-1] ^= 1
    ours = endpoint(is_client, algorithm=algorithm, remote_fingerprint=bytes(wrong))
    other = endpoint(not is_client)
    network = Network((ours, other))
    network.handshake()
    network.exchange()
    assert (ours.state, ours.failure) == ("failed", "fingerprint_mismatch")
    assert other.state != "connected"
    with pytest.raises(RuntimeError):
        ours.srtp_keys()
    assert ours.send_app_data(b"x") is False


@pytest.mark.parametrize(
    ("algorithm", "length"), [("sha-1", 20), ("sha-256", 31), ("sha-512", 32), ("", 0)]
)
def test_fingerprints_that_do_not_fit(algorithm: str, length: int) -> None:
    own = certificate("edge")
    with pytest.raises(ValueError, match="fingerprint"):
        DtlsEndpoint(own.certificate_pem, own.key_pem, algorithm, bytes(length), True)


def test_an_rsa_key_of_ours_is_refused() -> None:
    own = certificate("rsa peer")
    with pytest.raises(ValueError, match="elliptic"):
        DtlsEndpoint(own.certificate_pem, own.key_pem, "sha-256", bytes(32), True)


def test_no_cipher_in_common_fails_at_the_server_at_once() -> None:
    server = endpoint(False)
    peer = PlainOpenSsl(True, ciphers=b"ECDHE-ECDSA-AES128-SHA")
    network = Network((peer, server))
    network.handshake()
    assert server.state == "failed"
    assert server.failure.startswith("handshake_failed: ")
    assert "cipher" in server.failure


@pytest.mark.parametrize("lost", [(), (0,), (1,), (0, 1), (2, 4)])
def test_a_hello_in_several_datagrams(lost: tuple[int, ...]) -> None:
    """Post-quantum key shares make Firefox's ClientHello longer than a datagram; here it is a
    list of protocols. DTLSv1_listen would refuse the fragments."""
    protocols = [bytes([97 + i]) * 200 for i in range(12)]
    server = endpoint(False, remote=certificate("peer"))
    client = PlainOpenSsl(True, protocols=protocols)
    network = Network((client, server))
    network.start()
    hello = [datagram for _, sender, datagram in network.sent if sender == 0]
    assert len(hello) >= 3
    assert sum(map(len, hello)) > 2400
    # The client has no timer; its user sends the hello again, under new record numbers.
    if lost:
        server = endpoint(False, remote=certificate("peer"))
        network = Network((client, server))
        for index, datagram in enumerate(hello):
            if index not in lost:
                network.deliver(server, datagram)
        assert server.poll_transmit() == []
        for index, datagram in enumerate(hello):
            network.deliver(server, datagram[:5] + (50 + index).to_bytes(6, "big") + datagram[11:])
        server.start(0)
        network.collect()
        network.run(network.settled)
    else:
        network.run(network.settled)
    assert (client.state, server.state) == ("connected", "connected")


def test_app_data() -> None:
    client, server, network = connected_pair()
    messages = [b"a", b"b" * 1000, bytes(1200), b"c" * 16384]
    for message in messages:
        assert client.send_app_data(message)
        assert server.send_app_data(message[::-1])
    network.exchange()
    assert server.poll_app_data() == messages
    assert client.poll_app_data() == [message[::-1] for message in messages]
    assert client.poll_app_data() == []
    for bad in (b"", bytes(16385)):
        with pytest.raises(ValueError, match="16384"):
            client.send_app_data(bad)


def test_app_data_before_the_finished_is_kept() -> None:
    """A server may send its first SCTP packet with its Finished; reordered, it comes first."""
    client, server = pair()
    network = Network((client, server))
    network.start()
    network.run(lambda: server.state == "connected")
    last_flight = network.sent.pop()[2]
    assert server.send_app_data(b"early")
    (early,) = server.poll_transmit()
    network.deliver(client, early)
    assert client.state == "handshaking"
    network.deliver(client, last_flight)
    assert client.state == "connected"
    assert client.poll_app_data() == [b"early"]
    assert network.drops == []


def test_records_are_packed_to_the_limit() -> None:
    client, server, _ = connected_pair()
    for _ in range(10):
        client.send_app_data(bytes(200))
    client.send_app_data(bytes(1300))
    datagrams = client.poll_transmit()
    record_bytes = 13 + 8 + 200 + 16
    assert [len(datagram) for datagram in datagrams] == [
        5 * record_bytes, 5 * record_bytes, 13 + 8 + 1300 + 16,
    ]  # fmt: skip
    for datagram in datagrams:
        server.handle_datagram(datagram, 0)
    assert [len(data) for data in server.poll_app_data()] == [200] * 10 + [1300]


def test_close_notify() -> None:
    client, server, network = connected_pair()
    client.close(network.now_ns)
    assert client.state == "closed"
    network.exchange()
    assert (server.state, server.failure) == ("closed", "")
    client.close(network.now_ns)
    assert client.poll_transmit() == []
    client.handle_datagram(b"whatever", network.now_ns)
    client.handle_timer(network.now_ns)
    assert client.state == "closed"


def test_close_before_the_end() -> None:
    client, server = pair()
    client.close(0)
    assert (client.state, client.poll_transmit()) == ("closed", [])
    server.start(0)
    server.close(0)
    assert (server.state, server.poll_transmit()) == ("closed", [])
    assert server.next_timeout() is None
