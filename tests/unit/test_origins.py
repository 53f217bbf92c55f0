"""Which pages and which Host names are let in."""

from __future__ import annotations

import pytest

from controlplane.origins import is_host_allowed, is_loopback_address, is_origin_allowed


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://localhost:3000", "127.0.0.1:8080", True),
        ("http://LOCALHOST:3000", "127.0.0.1:8080", True),
        ("https://app.localhost", "127.0.0.1:8080", True),
        ("http://[::1]:5173", "127.0.0.1:8080", True),
        ("http://edge.example", "EDGE.example", True),
        ("https://evil.example", "127.0.0.1:8080", False),
        ("https://localhost.evil.example", "127.0.0.1:8080", False),
        ("https://evil-localhost", "127.0.0.1:8080", False),
        ("http://127.0.0.1.evil.example", "127.0.0.1:8080", False),
        ("http://0.0.0.0:3000", "127.0.0.1:8080", False),
        ("http://192.168.1.5", "127.0.0.1:8080", False),
        ("null", "127.0.0.1:8080", False),
        ("", "127.0.0.1:8080", False),
        ("file://", "127.0.0.1:8080", False),
        ("chrome-extension://localhost", "127.0.0.1:8080", False),
        ("http://[::1", "127.0.0.1:8080", False),
        ("http://localhost@evil.example", "127.0.0.1:8080", False),
    ],
)
def test_origins_without_a_key(origin: str, host: str, allowed: bool) -> None:
    assert is_origin_allowed(origin, host, has_key=False) is allowed
    assert is_origin_allowed(origin, host, has_key=True)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (None, True),
        ("127.0.0.1:8080", True),
        ("127.8.9.10", True),
        ("[::1]:8080", True),
        ("[::ffff:127.0.0.1]:8080", True),
        ("localhost:8080", True),
        ("localhost.", True),
        ("talk.localhost", True),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("0.0.0.0:8080", False),
        ("", False),
        ("[::1", False),
        ("localhost@evil.example", False),
    ],
)
def test_hosts_without_a_key(host: str | None, allowed: bool) -> None:
    assert is_host_allowed(host, has_key=False) is allowed
    assert is_host_allowed(host, has_key=True)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("localhost", False),
    ],
)  # fmt: skip
def test_loopback_addresses(address: str, loopback: bool) -> None:
    assert is_loopback_address(address) is loopback
