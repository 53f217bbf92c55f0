"""Two DTLS endpoints on a network of virtual time that loses, doubles, delays and watches."""

from __future__ import annotations

import datetime
import functools
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from dataplane.proto.dtls import DtlsEndpoint
from dataplane.proto.dtls_record import MAX_DATAGRAM_BYTES, pack_datagrams, split_own_records
from dataplane.proto.errors import BadPacket

MS = 1_000_000


@dataclass(frozen=True)
class Certificate:
    certificate_pem: str
    key_pem: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    def fingerprint(self, algorithm: str = "sha-256") -> bytes:
        return self.certificate.fingerprint(
            {"sha-256": hashes.SHA256(), "sha-384": hashes.SHA384(), "sha-512": hashes.SHA512()}[
                algorithm
            ]
        )


@functools.cache
def certificate(name: str) -> Certificate:
    """Self-signed, P-256; of RSA if the name begins with "rsa"."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if name.startswith("rsa"):
        key = rsa.generate_private_key(65537, 2048)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = built.public_bytes(serialization.Encoding.PEM)
    return Certificate(pem.decode(), key_pem.decode(), built, key)


def endpoint(
    is_client: bool,
    *,
    algorithm: str = "sha-256",
    remote: Certificate | None = None,
    remote_fingerprint: bytes | None = None,
) -> DtlsEndpoint:
    """ "edge" is the client's certificate and "peer" the server's, unless said otherwise."""
    ours, theirs = certificate("edge"), certificate("peer")
    if not is_client:
        ours, theirs = theirs, ours
    return DtlsEndpoint(
        ours.certificate_pem,
        ours.key_pem,
        algorithm,
        remote_fingerprint or (remote or theirs).fingerprint(algorithm),
        is_client,
    )


def pair() -> tuple[DtlsEndpoint, DtlsEndpoint]:
    return endpoint(True), endpoint(False)


class Peer(Protocol):
    state: str

    def start(self, now_ns: int) -> None: ...
    def handle_datagram(self, datagram: bytes, now_ns: int) -> None: ...
    def handle_timer(self, now_ns: int) -> None: ...
    def next_timeout(self) -> int | None: ...
    def poll_transmit(self) -> list[bytes]: ...


class PlainOpenSsl:
    """OpenSSL with nothing of ours around it and no timer: as unhelpful as a peer can be."""

    def __init__(
        self,
        is_client: bool,
        *,
        profiles: bytes = b"SRTP_AEAD_AES_128_GCM:SRTP_AES128_CM_SHA1_80",
        ciphers: bytes = b"ECDHE+AESGCM:ECDHE+CHACHA20",
        name: str = "peer",
        protocols: Sequence[bytes] = (),
    ) -> None:
        context = SSL.Context(SSL.DTLS_METHOD)
        own = certificate(name)
        context.use_certificate(own.certificate)
        context.use_privatekey(own.key)
        context.set_cipher_list(ciphers)
        context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET)
        context.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True
        )  # fmt: skip
        if profiles:
            context.set_tlsext_use_srtp(profiles)
        if protocols:
            context.set_alpn_protos(list(protocols))
        self.connection = SSL.Connection(context, None)
        self.connection.set_ciphertext_mtu(MAX_DATAGRAM_BYTES)
        if is_client:
            self.connection.set_connect_state()
        else:
            self.connection.set_accept_state()
        self.state = "new"
        self.received: list[bytes] = []
        self._is_client = is_client

    def start(self, now_ns: int) -> None:
        self.state = "handshaking"
        if self._is_client:
            self._pump()

    def handle_datagram(self, datagram: bytes, now_ns: int) -> None:
        self.connection.bio_write(datagram)
        self._pump()

    def _pump(self) -> None:
        try:
            if self.state == "handshaking":
                self.connection.do_handshake()
                self.state = "connected"
            while self.state == "connected":
                self.received.append(self.connection.recv(65536))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.state = "closed"
        except SSL.Error:
            self.state = "failed"

    def handle_timer(self, now_ns: int) -> None: ...

    def next_timeout(self) -> int | None:
        return None

    def poll_transmit(self) -> list[bytes]:
        data = b""
        try:
            while True:
                data += self.connection.bio_read(65536)
        except SSL.WantReadError:
            return pack_datagrams(record.data for record in split_own_records(data))


# (number of the datagram, number of its sender, datagram) -> delays in ns; none: it is lost.
Weather = Callable[[int, int, bytes], Sequence[int]]


def calm(delay_ns: int = 10 * MS) -> Weather:
    return lambda index, sender, datagram: (delay_ns,)


def losing(lost: frozenset[int], delay_ns: int = 10 * MS) -> Weather:
    """Loses the datagrams of these numbers."""
    return lambda index, sender, datagram: () if index in lost else (delay_ns,)


def terrible(seed: int, loss: float = 0.2) -> Weather:
    """Loses, doubles, and delays by 1..60 ms, so that datagrams overtake one another."""
    rng = random.Random(seed)

    def weather(index: int, sender: int, datagram: bytes) -> Sequence[int]:
        copies = 0 if rng.random() < loss else rng.choice((1, 1, 1, 2))
        return [rng.randrange(1, 60) * MS for _ in range(copies)]

    return weather


@dataclass
class Network:
    """Carries datagrams between two peers. before_delivery is called with the receiver and the
    datagram each time; drops counts the BadPacket reasons of what was delivered."""

    peers: tuple[Peer, Peer]
    weather: Weather = field(default_factory=calm)
    before_delivery: Callable[[Peer, bytes, int], None] | None = None
    now_ns: int = 0
    sent: list[tuple[int, int, bytes]] = field(default_factory=list)  # time, sender, datagram
    drops: list[str] = field(default_factory=list)
    _queue: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        for peer in self.peers:
            peer.start(self.now_ns)
        self.collect()

    def collect(self) -> None:
        """Put on the way what the peers have to send."""
        for sender, peer in enumerate(self.peers):
            for datagram in peer.poll_transmit():
                delays = self.weather(len(self.sent), sender, datagram)
                self.sent.append((self.now_ns, sender, datagram))
                for delay_ns in delays:
                    item = (self.now_ns + delay_ns, next(self._order), 1 - sender, datagram)
                    heapq.heappush(self._queue, item)

    def run(self, until: Callable[[], bool], limit_ns: int = 15_000 * MS) -> None:
        """Let time pass until it is so, or nothing is left to happen, or the limit is reached."""
        while not until():
            timeouts = [peer.next_timeout() for peer in self.peers]
            due = [at for at in timeouts if at is not None]
            if self._queue:
                due.append(self._queue[0][0])
            if not due or min(due) > limit_ns:
                return
            self.now_ns = max(self.now_ns, min(due))
            self._step(timeouts)
            self.collect()

    def _step(self, timeouts: list[int | None]) -> None:
        if self._queue and self._queue[0][0] <= self.now_ns:
            _, _, receiver, datagram = heapq.heappop(self._queue)
            if self.before_delivery is not None:
                self.before_delivery(self.peers[receiver], datagram, self.now_ns)
            self.deliver(self.peers[receiver], datagram)
            return
        for peer, at in zip(self.peers, timeouts, strict=True):
            if at is not None and at <= self.now_ns:
                peer.handle_timer(self.now_ns)

    def deliver(self, peer: Peer, datagram: bytes) -> None:
        try:
            peer.handle_datagram(datagram, self.now_ns)
        except BadPacket as bad:
            self.drops.append(bad.reason)

    def handshake(self) -> None:
        self.start()
        self.run(self.settled)

    def settled(self) -> bool:
        return all(peer.state not in ("new", "handshaking") for peer in self.peers)

    def exchange(self) -> None:
        """Deliver all that is on the way now, and what it brings forth, within a second."""
        self.collect()
        self.run(lambda: not self._queue, self.now_ns + 1000 * MS)
