"""DTLS-SRTP for one session (RFC 5763, RFC 5764), DTLS 1.2 by OpenSSL over memory BIOs.

    state        event                                        next
    new          start, or a datagram                         handshaking
    handshaking  Finished verified, fingerprint as agreed,    connected
                 an SRTP profile agreed
    handshaking  the same, but another fingerprint            failed  "fingerprint_mismatch"
    handshaking  the same, but no SRTP profile                failed  "no_srtp_profile"
    handshaking  OpenSSL gives up                             failed  "handshake_failed: ..."
    handshaking  10 s have passed                             failed  "dtls_timeout"
    connected    authenticated close_notify                   closed
    connected    authenticated fatal alert                    closed  "fatal_alert"
    any          close()                                      closed

Nothing else leaves a state. What an attacker can send without keys is dropped: what is no record,
what is no handshake of ours, plaintext alerts (RFC 6347 4.1.2.7 lets us), a second opinion on how
long a message is. Not defended, because DTLS 1.2 has nothing to defend it with: a well-formed
forgery of the very message that is due, from an address that ICE has verified.

Retransmission is ours (75 ms at first; RFC 6347 4.2.4.1 allows a shorter timer than 1 s, and
browsers start at 50 ms): OpenSSL's timer begins at 1 s and cannot be set through pyOpenSSL.
A flight is sent again as it was, under new record numbers; see dtls_finished for the encrypted
part. Plaintext records get their numbers here, first sending included.
"""

from __future__ import annotations

import hmac
from collections import deque

from OpenSSL import SSL

from dataplane.proto.dtls_context import SRTP_PROFILES, new_connection
from dataplane.proto.dtls_finished import FinishedSealer
from dataplane.proto.dtls_record import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    Record,
    malformed,
    pack_datagrams,
    parse_fragments,
    parse_records,
    renumber,
    split_own_records,
)
from dataplane.proto.errors import BadPacket

NEW = "new"
HANDSHAKING = "handshaking"
CONNECTED = "connected"
CLOSED = "closed"
FAILED = "failed"

_SRTP_EXPORTER_LABEL = b"EXTRACTOR-dtls_srtp"  # RFC 5764 section 4.2

_FINGERPRINT_DIGESTS = {"sha-256": ("sha256", 32), "sha-384": ("sha384", 48), "sha-512": ("sha512", 64)}  # fmt: skip  # noqa: E501

HANDSHAKE_TIMEOUT_NS = 10_000_000_000
FIRST_RESEND_NS = 75_000_000
# Rather short, for the sake of the last flight: at 40 % loss each way one try in three succeeds.
MAX_RESEND_NS = 600_000_000

# A whole handshake is under 3 kB a side (20 kB with a long RSA chain and a post-quantum hello).
MAX_HANDSHAKE_BYTES = 128 * 1024
# OpenSSL would take 100 kB for a message, and reassemble ten at a time.
MAX_MESSAGE_BYTES = 8192
# Hello, cookie, certificates, keys, Finished: no flight of DTLS 1.2 numbers higher than 8.
MAX_MESSAGE_SEQ = 12
# Records of epoch 1 that came before the keys for it. OpenSSL would hold 100, of 17 kB each.
MAX_HELD_RECORDS = 16
# Application data that nobody fetched; SCTP has windows of its own.
MAX_APP_DATA_BYTES = 256 * 1024
MAX_APP_RECORD_BYTES = 16384

# Handshake messages that may come in plaintext, by our role (RFC 5246 section 7.4).
_FROM_SERVER = frozenset((0, 2, 3, 11, 12, 13, 14, 22))
_FROM_CLIENT = frozenset((1, 11, 15, 16))

_READ_CHANGE_CIPHER_SPEC = b"SSLv3/TLS read change cipher spec"
_STATE_ERROR = b"error"


class DtlsEndpoint:
    """One end of one DTLS association: feed datagrams and time, drain what is to be sent.

    certificate_pem, key_pem: ours, ECDSA P-256. fingerprint_algorithm: "sha-256", "sha-384" or
    "sha-512"; remote_fingerprint: of that length. Raises ValueError if they do not fit.
    Server contexts need a Python callback in OpenSSL, which a process under
    MemoryDenyWriteExecute cannot make (MemoryError); clients, our usual role, need none.
    """

    def __init__(
        self,
        certificate_pem: str,
        key_pem: str,
        fingerprint_algorithm: str,
        remote_fingerprint: bytes,
        is_client: bool = True,
    ) -> None:
        digest, digest_bytes = _FINGERPRINT_DIGESTS.get(fingerprint_algorithm, ("", -1))
        if len(remote_fingerprint) != digest_bytes:
            raise ValueError("fingerprint of an unknown algorithm or the wrong length")
        self.state = NEW
        self.failure = ""
        self.srtp_profile = 0
        self._digest = digest
        self._remote_fingerprint = remote_fingerprint
        self._is_client = is_client
        self._connection = new_connection(certificate_pem, key_pem, is_client)
        self._srtp_keys = (b"", b"")

        self._outgoing: list[bytes] = []  # records
        self._app_data: list[bytes] = []
        self._app_data_bytes = 0

        self._handshake_bytes = 0
        self._messages: dict[int, tuple[int, int]] = {}  # by message_seq: type, length
        self._held: deque[bytes] = deque(maxlen=MAX_HELD_RECORDS)
        self._peer_changed_cipher = False

        self._plaintext_seq = 0
        self._encrypted_seq = 0  # the next of OpenSSL's
        self._resealed_seq = 0  # the last that a copy of our Finished has had
        self._flight: list[Record] = []
        self._flight_message_seq = -1
        self._sealer: FinishedSealer | None = None

        self._deadline_ns = 0
        self._resend_at_ns: int | None = None
        self._resend_after_ns = FIRST_RESEND_NS
        self._flight_sent_ns = 0
        self._flight_resent = False

    def start(self, now_ns: int) -> None:
        """Begin the handshake; a client's ClientHello is then ready to be sent."""
        if self.state != NEW:
            return
        self.state = HANDSHAKING
        self._deadline_ns = now_ns + HANDSHAKE_TIMEOUT_NS
        if self._is_client:
            self._advance_handshake(now_ns)

    def handle_datagram(self, datagram: bytes, now_ns: int) -> None:
        """Take a datagram of an address that ICE has verified.

        Raises BadPacket drop_dtls_malformed if no record of it is of use to anybody, and
        drop_dtls_limit beyond the bounds above. Neither changes anything.
        """
        if self.state in (CLOSED, FAILED):
            return
        records = parse_records(datagram)
        self.start(now_ns)
        if self.state == HANDSHAKING:
            self._handshake_bytes += len(datagram)
            if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
                raise BadPacket("drop_dtls_limit", "handshake bytes")
        rejected: BadPacket | None = None
        accepted = 0
        for record in records:
            try:
                self._handle_record(record, now_ns)
                accepted += 1
            except BadPacket as bad:
                rejected = bad
        if rejected is not None and not accepted:
            raise rejected

    def handle_timer(self, now_ns: int) -> None:
        """Resend or give up, if it is time."""
        if self.state != HANDSHAKING:
            return
        if now_ns >= self._deadline_ns:
            self._fail("dtls_timeout")
        elif self._resend_at_ns is not None and now_ns >= self._resend_at_ns:
            self._flight_resent = True
            self._resend_after_ns = min(2 * self._resend_after_ns, MAX_RESEND_NS)
            self._resend_at_ns = now_ns + self._resend_after_ns
            self._send_flight()

    def next_timeout(self) -> int | None:
        """When handle_timer is due, in ns; None if never."""
        if self.state != HANDSHAKING:
            return None
        if self._resend_at_ns is None:
            return self._deadline_ns
        return min(self._resend_at_ns, self._deadline_ns)

    def poll_transmit(self) -> list[bytes]:
        """The datagrams that are due, at most 1,200 bytes each."""
        if not self._outgoing:
            return []
        records, self._outgoing = self._outgoing, []
        return pack_datagrams(records)

    def srtp_keys(self) -> tuple[bytes, bytes]:
        """Master key and salt of what we send, and of what we receive; once connected."""
        if self.state != CONNECTED:
            raise RuntimeError("no keys before the handshake is done")
        return self._srtp_keys

    def poll_app_data(self) -> list[bytes]:
        """What the peer sent since the last call, one entry for each record."""
        data, self._app_data, self._app_data_bytes = self._app_data, [], 0
        return data

    def send_app_data(self, data: bytes) -> bool:
        """Send one record of 1..16,384 bytes. False: not connected, nothing is sent.

        A record is never split, so beyond about 1,160 bytes its datagram exceeds 1,200."""
        if not 1 <= len(data) <= MAX_APP_RECORD_BYTES:
            raise ValueError("a record carries 1..16384 bytes")
        if self.state != CONNECTED:
            return False
        try:
            self._connection.send(data)
        except SSL.Error:  # it has ended, and we have not been told yet
            return False
        self._send_openssl_output()
        return True

    def close(self, now_ns: int) -> None:
        """Say close_notify if connected, and be closed. A failed endpoint stays failed."""
        if self.state == CONNECTED:
            self._say_close_notify()
        if self.state != FAILED:
            self.state = CLOSED

    # Incoming records

    def _handle_record(self, record: Record, now_ns: int) -> None:
        if self.state == HANDSHAKING:
            if record.epoch == 0:
                self._check_plaintext(record)
                self._feed_handshake(record.data, now_ns)
            elif self._peer_changed_cipher:
                self._feed_handshake(record.data, now_ns)
            else:
                self._held.append(record.data)
        elif self.state == CONNECTED:
            if record.epoch == 1:
                self._feed_connected(record.data)
            elif record.content_type in (ALERT, APPLICATION_DATA):
                malformed("plaintext after the handshake")
            # else the peer's last flight, sent again by a timer: of no use any more.

    def _check_plaintext(self, record: Record) -> None:
        """Refuse what OpenSSL would end the handshake for although anybody can have sent it."""
        if record.content_type == CHANGE_CIPHER_SPEC:
            if record.body != b"\x01":
                malformed("ChangeCipherSpec")
            return
        if record.content_type != HANDSHAKE:
            malformed("plaintext alert or data")
        for fragment in parse_fragments(record):
            if fragment.message_type not in (_FROM_SERVER if self._is_client else _FROM_CLIENT):
                malformed("handshake message of the wrong side")
            if fragment.message_bytes > MAX_MESSAGE_BYTES:
                raise BadPacket("drop_dtls_limit", "message length")
            if fragment.message_seq > MAX_MESSAGE_SEQ:
                malformed("message_seq")
            described = (fragment.message_type, fragment.message_bytes)
            if self._messages.setdefault(fragment.message_seq, described) != described:
                malformed("fragment of another message")

    def _feed_handshake(self, record: bytes, now_ns: int) -> None:
        self._connection.bio_write(record)
        self._advance_handshake(now_ns)
        if (
            self.state == HANDSHAKING
            and not self._peer_changed_cipher
            and self._connection.get_state_string() == _READ_CHANGE_CIPHER_SPEC
        ):
            self._peer_changed_cipher = True
            held, self._held = self._held, deque(maxlen=MAX_HELD_RECORDS)
            for early in held:
                if self.state == HANDSHAKING:
                    self._feed_handshake(early, now_ns)
                elif self.state == CONNECTED:
                    self._feed_connected(early)

    def _feed_connected(self, record: bytes) -> None:
        self._connection.bio_write(record)
        self._read_app_data()
        if self.state == CONNECTED:
            # A server answers the client's Finished, come again, with its own.
            self._send_openssl_output()

    def _read_app_data(self) -> None:
        while self.state == CONNECTED:
            try:
                data = self._connection.recv(MAX_APP_RECORD_BYTES)
            except SSL.WantReadError:
                return
            except SSL.ZeroReturnError:
                self._say_close_notify()
                self.state = CLOSED
                return
            except SSL.Error:
                # OpenSSL drops what does not authenticate without a word, so this is the peer's.
                if self._connection.get_state_string() == _STATE_ERROR or (
                    self._connection.get_shutdown() & SSL.RECEIVED_SHUTDOWN
                ):
                    self.state, self.failure = CLOSED, "fatal_alert"
                return
            self._app_data_bytes += len(data)
            if self._app_data_bytes > MAX_APP_DATA_BYTES:
                self._app_data_bytes -= len(data)
                raise BadPacket("drop_dtls_limit", "application data")
            self._app_data.append(data)

    # The handshake

    def _advance_handshake(self, now_ns: int) -> None:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._take_flight(now_ns)
        except SSL.Error as error:
            if self._connection.get_state_string() == _STATE_ERROR:
                self._send_openssl_output()  # its alert
                self._fail(f"handshake_failed: {_reason_of(error)}")
        else:
            self._finish_handshake()

    def _take_flight(self, now_ns: int) -> None:
        """Whatever OpenSSL wrote while it waits for more is a new flight, or its own repetition
        of the last one."""
        records = self._read_openssl_output()
        if not records:
            return
        first = next((r for r in records if r.content_type == HANDSHAKE and r.epoch == 0), None)
        message_seq = parse_fragments(first)[0].message_seq if first is not None else -1
        if message_seq <= self._flight_message_seq:
            return
        if self._flight and not self._flight_resent:
            # RFC 6347 4.2.4.1: the timer may be set anew after a flight without loss.
            round_trip_ns = now_ns - self._flight_sent_ns
            self._resend_after_ns = min(max(FIRST_RESEND_NS, round_trip_ns * 3 // 2), MAX_RESEND_NS)
        self._flight = records
        self._flight_message_seq = message_seq
        self._flight_sent_ns = now_ns
        self._flight_resent = False
        self._resend_at_ns = now_ns + self._resend_after_ns
        if self._is_client and records[-1].epoch == 1:
            self._sealer = FinishedSealer.from_connection(self._connection, records[-1])
        self._send_flight()

    def _send_flight(self) -> None:
        for record in self._flight:
            if record.epoch == 0:
                self._send_plaintext(record)
            elif self._flight_resent and self._sealer is not None:
                self._resealed_seq += 1
                self._outgoing.append(self._sealer.seal(self._resealed_seq))
            else:
                self._outgoing.append(record.data)

    def _finish_handshake(self) -> None:
        self._resend_at_ns = None
        self._skip_resealed_numbers()
        self._send_openssl_output()  # a server's last flight
        if not self._is_expected_peer():
            self._say_close_notify()
            self._fail("fingerprint_mismatch")
            return
        profile = SRTP_PROFILES.get(self._connection.get_selected_srtp_profile())
        if profile is None:
            self._say_close_notify()
            self._fail("no_srtp_profile")
            return
        self.srtp_profile = profile[0]
        self._srtp_keys = self._export_srtp_keys(profile[1], profile[2])
        self._flight, self._sealer, self._messages = [], None, {}
        self.state = CONNECTED
        self._read_app_data()  # what overtook the Finished

    def _is_expected_peer(self) -> bool:
        """RFC 8122 section 6.2; the certificate is otherwise self-signed and unexamined."""
        certificate = self._connection.get_peer_certificate()
        if certificate is None:
            return False
        theirs = bytes.fromhex(certificate.digest(self._digest).decode("ascii").replace(":", ""))
        return hmac.compare_digest(theirs, self._remote_fingerprint)

    def _export_srtp_keys(self, key_bytes: int, salt_bytes: int) -> tuple[bytes, bytes]:
        """RFC 5764 section 4.2: client key, server key, client salt, server salt."""
        material = self._connection.export_keying_material(
            _SRTP_EXPORTER_LABEL, 2 * (key_bytes + salt_bytes)
        )
        keys, salts = material[: 2 * key_bytes], material[2 * key_bytes :]
        client = keys[:key_bytes] + salts[:salt_bytes]
        server = keys[key_bytes:] + salts[salt_bytes:]
        return (client, server) if self._is_client else (server, client)

    def _fail(self, failure: str) -> None:
        self.state, self.failure = FAILED, failure
        self._resend_at_ns = None

    # Outgoing records

    def _read_openssl_output(self) -> list[Record]:
        data = b""
        try:
            while True:
                data += self._connection.bio_read(65536)
        except SSL.WantReadError:
            pass
        records = split_own_records(data)
        for record in records:
            if record.epoch == 1:
                self._encrypted_seq = max(self._encrypted_seq, record.seq + 1)
        return records

    def _send_openssl_output(self) -> None:
        for record in self._read_openssl_output():
            if record.epoch == 0:
                self._send_plaintext(record)
            elif record.seq > self._resealed_seq or not self._resealed_seq:
                self._outgoing.append(record.data)
            # else a copy of our Finished has had the number: see dtls_finished.

    def _send_plaintext(self, record: Record) -> None:
        self._outgoing.append(renumber(record.data, self._plaintext_seq))
        self._plaintext_seq += 1

    def _skip_resealed_numbers(self) -> None:
        """Let OpenSSL count past the numbers that copies of our Finished have had; the records
        it makes meanwhile are not sent."""
        while self._resealed_seq and self._encrypted_seq <= self._resealed_seq:
            self._connection.send(b"\0")
            self._read_openssl_output()

    def _say_close_notify(self) -> None:
        try:
            self._connection.shutdown()
        except SSL.Error:
            return
        self._send_openssl_output()


def _reason_of(error: SSL.Error) -> str:
    """OpenSSL's own words, for the log."""
    errors = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return ", ".join(str(entry[-1]) for entry in errors) or type(error).__name__
