"""A self-signed certificate for a synthetic client, as a browser makes one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from dataplane.node import make_certificate


@dataclass(frozen=True)
class Certificate:
    """PEM texts and the SHA-256 fingerprint that goes into SDP."""

    certificate_pem: str
    private_key_pem: str
    fingerprint: str
    """``AA:BB:…``, as RFC 8122 section 5 writes it."""

    @classmethod
    def make(cls) -> Certificate:
        """A fresh ECDSA P-256 certificate."""
        certificate_pem, private_key_pem = make_certificate()
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        digest = certificate.fingerprint(hashes.SHA256())
        return cls(certificate_pem, private_key_pem, digest.hex(":").upper())


@cache
def shared_certificate() -> Certificate:
    """One certificate per process: thousands of peers need not make each its own."""
    return Certificate.make()
