"""OpenSSL as DTLS-SRTP wants it: a context for each certificate and role, and its connections."""

from __future__ import annotations

import functools

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from dataplane.proto.dtls_record import MAX_DATAGRAM_BYTES

# RFC 5764 section 4.1.2 and RFC 7714 section 14.2: number, and bytes of master key and salt.
SRTP_AES128_CM_SHA1_80 = 1
SRTP_AEAD_AES_128_GCM = 7
SRTP_PROFILES = {
    b"SRTP_AEAD_AES_128_GCM": (SRTP_AEAD_AES_128_GCM, 16, 12),
    b"SRTP_AES128_CM_SHA1_80": (SRTP_AES128_CM_SHA1_80, 16, 14),
}

_DTLS1_2 = 0xFEFD
# Forward secrecy and AEAD. RFC 8827 6.5 demands the first; RSA is for peers with RSA certificates.
_CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    b"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
)


def new_connection(certificate_pem: str, key_pem: str, is_client: bool) -> SSL.Connection:
    """A connection over memory BIOs that writes records of at most MAX_DATAGRAM_BYTES.
    Raises ValueError for a key that is not of an elliptic curve."""
    connection = SSL.Connection(_context(certificate_pem, key_pem, is_client), None)
    connection.set_ciphertext_mtu(MAX_DATAGRAM_BYTES)
    if is_client:
        connection.set_connect_state()
    else:
        connection.set_accept_state()
    return connection


@functools.lru_cache(maxsize=32)
def _context(certificate_pem: str, key_pem: str, is_client: bool) -> SSL.Context:
    """One for each certificate and role: it holds nothing of a session."""
    key = load_pem_private_key(key_pem.encode("ascii"), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the private key is not of an elliptic curve")
    context = SSL.Context(SSL.DTLS_METHOD)
    context.set_min_proto_version(_DTLS1_2)
    context.set_max_proto_version(_DTLS1_2)
    context.use_certificate(x509.load_pem_x509_certificate(certificate_pem.encode("ascii")))
    context.use_privatekey(key)
    context.set_cipher_list(_CIPHERS)
    context.set_options(
        SSL.OP_NO_TICKET
        | SSL.OP_NO_QUERY_MTU
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_tlsext_use_srtp(b":".join(SRTP_PROFILES))
    if is_client:
        # The certificate is judged by its fingerprint, after the handshake.
        context.set_verify(SSL.VERIFY_NONE)
    else:
        # The only way to ask a client for its certificate.
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _accept_any)
    return context


def _accept_any(*_: object) -> bool:
    return True
