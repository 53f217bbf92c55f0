"""What the supervisor tells every process of a node: ``node.json``.

The file holds the certificate's private key and the cluster's keys, so its
mode is 0600 and its directory's 0700.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dataplane.config import Backend, Config

NODE_FILE = "node.json"
# Browsers judge a DTLS certificate by its fingerprint alone (RFC 8122), so the
# dates only have to be wide enough for a node that nobody restarts.
CERTIFICATE_LIFE = timedelta(days=3650)


class NodeFileError(ValueError):
    """node.json is not there, cannot be read, or is of another version."""


@dataclass(frozen=True)
class NodeState:
    """One boot of a node. Ports are what the kernel gave, never 0."""

    config: Config
    boot_id: str
    """32 hex digits, new at every start that adopts nothing."""
    instance: str
    """Stem of the shared-memory names, from the run directory."""
    node_id: int
    cluster_keys: str = field(repr=False)
    """``0:hex``, the active one first."""
    certificate_pem: str = field(repr=False)
    private_key_pem: str = field(repr=False)
    udp_port: int
    http_port: int
    hop_ports: tuple[int, ...]
    """On 127.0.0.1, one for each transceiver."""
    supervisor_pid: int

    @property
    def fingerprint_sha256(self) -> str:
        """``AA:BB:…``, as SDP's a=fingerprint has it (RFC 8122 section 5)."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        certificate = x509.load_pem_x509_certificate(self.certificate_pem.encode())
        return certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def save(self, path: str | Path) -> None:
        """Atomically: a reader sees the old file or the new one."""
        write_private(Path(path), json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> NodeState:
        """Raises NodeFileError, which names the file and what is wrong."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            values["config"] = config_from_json(values["config"])
            values["hop_ports"] = tuple(values["hop_ports"])
            return cls(**values)
        except OSError as error:
            raise NodeFileError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise NodeFileError(f"{path}: not a node file of this version: {error}") from None


def config_from_json(values: dict[str, Any]) -> Config:
    """The inverse of ``dataclasses.asdict``, which JSON turned into lists."""
    backends = tuple(
        Backend(item["name"], item["path"], tuple(item["command"])) for item in values["backends"]
    )
    host, port = values["http"]
    return Config(
        **values
        | {"backends": backends, "http": (host, port), "advertise": tuple(values["advertise"])}
    )


def write_private(path: Path, text: str) -> None:
    """Replaces ``path`` atomically by a file that only its owner reads."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(fresh, path)


def instance_of(run_dir: str) -> str:
    """Two nodes on one machine share /dev/shm, never a run directory."""
    return hashlib.sha256(os.path.realpath(run_dir).encode()).hexdigest()[:10]


def make_certificate() -> tuple[str, str]:
    """A fresh self-signed ECDSA P-256 certificate: (certificate, private key), PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "earshot")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + CERTIFICATE_LIFE)
        .sign(key, hashes.SHA256())
    )
    private_key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private_key_pem.decode()
