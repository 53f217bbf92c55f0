"""A fresh copy of our encrypted Finished, for retransmission.

The last flight of a DTLS 1.2 handshake has no timer: the server sends its ChangeCipherSpec and
Finished again only when the client's Finished comes again (RFC 6347 section 4.2.4). It must come
in a record with a new sequence number, since the old one is a replay and dropped unread. OpenSSL
can make such a record, but only when its own timer has run out: one second, by the wall clock,
and pyOpenSSL has no DTLS_set_timer_cb. On a network that loses 2 % of datagrams that second hits
every fiftieth call.

So we seal the same message again ourselves, with the write key of the epoch, which follows from
what pyOpenSSL tells of the handshake (RFC 5246 section 6.3). Two rules keep that sound:

* No nonce is used for two plaintexts. With AES-GCM the nonce is explicit (RFC 5288); ours lie
  2^63 away from where OpenSSL's counter began. With ChaCha20-Poly1305 it follows from the
  sequence number (RFC 7905): the endpoint never sends an OpenSSL record under a number that a
  copy has had.
* Nothing is guessed. Deriving the key ends in opening OpenSSL's own Finished; if that fails, or
  the cipher suite is none of these, there is no sealer and OpenSSL's own timer has to do.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from OpenSSL import SSL

from dataplane.proto.dtls_record import RECORD_HEADER_BYTES, Record

_TAG_BYTES = 16
_GCM_SALT_BYTES = 4
_GCM_EXPLICIT_NONCE_BYTES = 8
_CHACHA_IV_BYTES = 12
_MESSAGE_TYPE_FINISHED = 20


class FinishedSealer:
    """Make one with from_connection; seal() then gives the Finished under any sequence number."""

    def __init__(self, cipher: AESGCM | ChaCha20Poly1305, iv: bytes, original: Record) -> None:
        """iv: the write IV of the key block. Raises InvalidTag if the key does not open original,
        ValueError if that is no Finished."""
        self._cipher = cipher
        self._iv = iv
        self._prefix = original.data[:3]  # content type and version
        self._epoch = original.data[3:5]
        self._explicit = _GCM_EXPLICIT_NONCE_BYTES if isinstance(cipher, AESGCM) else 0
        self._first_nonce = original.body[: self._explicit]
        self._message = cipher.decrypt(
            self._nonce(original.seq, self._first_nonce),
            original.body[self._explicit :],
            self._associated_data(
                original.seq,
                len(original.data) - RECORD_HEADER_BYTES - self._explicit - _TAG_BYTES,
            ),
        )
        if self._message[0] != _MESSAGE_TYPE_FINISHED:
            raise ValueError("not a Finished")

    @classmethod
    def from_connection(cls, connection: SSL.Connection, original: Record) -> FinishedSealer | None:
        """connection: a DTLS 1.2 client that has just sent original, its Finished."""
        suite = connection.get_cipher_name() or ""
        secret = connection.master_key()
        client_random, server_random = connection.client_random(), connection.server_random()
        if not (secret and client_random and server_random):
            return None
        if "CHACHA20" in suite:
            key_bytes, iv_bytes = 32, _CHACHA_IV_BYTES
        elif "GCM" in suite:
            key_bytes, iv_bytes = (32 if "AES256" in suite else 16), _GCM_SALT_BYTES
        else:
            return None
        digest = "sha384" if suite.endswith("SHA384") else "sha256"
        # RFC 5246 6.3: client key, server key, client IV, server IV; AEADs have no MAC keys.
        block = _prf(
            secret,
            b"key expansion" + server_random + client_random,
            2 * (key_bytes + iv_bytes),
            digest,
        )
        key, iv = block[:key_bytes], block[2 * key_bytes : 2 * key_bytes + iv_bytes]
        cipher = ChaCha20Poly1305(key) if "CHACHA20" in suite else AESGCM(key)
        try:
            return cls(cipher, iv, original)
        except (InvalidTag, ValueError, IndexError):
            return None

    def seal(self, seq: int) -> bytes:
        """The Finished as a record of the same epoch. seq: not used for anything else, > 0."""
        explicit = b""
        if self._explicit:
            distant = int.from_bytes(self._first_nonce, "big") + (1 << 63) + seq
            explicit = (distant % (1 << 64)).to_bytes(8, "big")
        sealed = explicit + self._cipher.encrypt(
            self._nonce(seq, explicit),
            self._message,
            self._associated_data(seq, len(self._message)),
        )
        header = self._prefix + self._epoch + seq.to_bytes(6, "big")
        return header + len(sealed).to_bytes(2, "big") + sealed

    def _nonce(self, seq: int, explicit: bytes) -> bytes:
        if self._explicit:
            return self._iv + explicit  # RFC 5288 section 3
        padded = bytes(4) + self._epoch + seq.to_bytes(6, "big")  # RFC 7905 section 2
        return bytes(a ^ b for a, b in zip(self._iv, padded, strict=True))

    def _associated_data(self, seq: int, plaintext_bytes: int) -> bytes:
        """RFC 5246 6.2.3.3, with the epoch in the number (RFC 6347 4.1.2.1)."""
        number = self._epoch + seq.to_bytes(6, "big")
        return number + self._prefix + plaintext_bytes.to_bytes(2, "big")


def _prf(secret: bytes, seed: bytes, length: int, digest: str) -> bytes:
    """RFC 5246 section 5; seed with its label."""
    output = b""
    chain = seed
    while len(output) < length:
        chain = hmac.digest(secret, chain, digest)
        output += hmac.digest(secret, chain + seed, digest)
    return output[:length]
