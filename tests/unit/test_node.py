"""node.json: whole, private, and back as it was."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dataplane.config import Backend, Config
from dataplane.node import NodeFileError, NodeState, instance_of, make_certificate


def node_state() -> NodeState:
    certificate_pem, private_key_pem = make_certificate()
    return NodeState(
        config=Config(
            backends=(Backend("echo", "/run/e.sock", ("python3", "echo.py")),),
            advertise=("127.0.0.1", "::1"),
            api_key="secret key of the API",
        ),
        boot_id="0f" * 16,
        instance="abcdef0123",
        node_id=7,
        cluster_keys="0:" + "5a" * 16,
        certificate_pem=certificate_pem,
        private_key_pem=private_key_pem,
        udp_port=3478,
        http_port=8080,
        hop_ports=(1, 2),
        supervisor_pid=42,
    )


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_text("something older")
    path.chmod(0o644)
    node = node_state()
    node.save(path)
    assert NodeState.load(path) == node
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.json"]


def test_repr_shows_no_secret() -> None:
    node = node_state()
    assert "PRIVATE KEY" not in repr(node)
    assert "5a5a" not in repr(node)
    assert "secret key" not in repr(node)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {}}', "null", "\0"])
def test_load_refuses_what_is_no_node_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.json"
    path.write_text(text)
    with pytest.raises(NodeFileError, match=r"node\.json: not a node file"):
        NodeState.load(path)


def test_load_refuses_a_field_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    node_state().save(path)
    values = json.loads(path.read_text())
    values["config"]["colour"] = "blue"
    path.write_text(json.dumps(values))
    with pytest.raises(NodeFileError, match="colour"):
        NodeState.load(path)


def test_load_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(NodeFileError, match="No such file"):
        NodeState.load(tmp_path / "node.json")


def test_certificate_is_p256_and_its_fingerprint_is_of_the_der() -> None:
    node = node_state()
    certificate = x509.load_pem_x509_certificate(node.certificate_pem.encode())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    private = serialization.load_pem_private_key(node.private_key_pem.encode(), None)
    assert private.public_key() == key
    der = certificate.public_bytes(serialization.Encoding.DER)
    digest = hashlib.sha256(der).hexdigest().upper()
    assert node.fingerprint_sha256 == ":".join(digest[i : i + 2] for i in range(0, 64, 2))


def test_instance_follows_the_directory_not_its_spelling(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert instance_of(str(tmp_path)) == instance_of(str(tmp_path / "link"))
    assert instance_of(str(tmp_path)) != instance_of(str(tmp_path / "other"))
