from __future__ import annotations

import pytest

from dataplane.proto.address import Address


def test_ipv4_is_mapped_and_comes_back_plain() -> None:
    address = Address.from_text("192.0.2.7", 3478)
    assert address.ip == bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7])
    assert address.host == "192.0.2.7"
    assert str(address) == "192.0.2.7:3478/udp"
    assert address == Address.from_text("::ffff:192.0.2.7", 3478)


def test_ipv6() -> None:
    address = Address.from_text("::1", 5, transport=2)
    assert address.ip == bytes(15) + b"\x01"
    assert address.host == "::1"
    assert str(address) == "[::1]:5/tcp"
    assert not address.is_ipv4
    assert Address.from_text("fe80::1%eth0", 5).host == "fe80::1"


@pytest.mark.parametrize(("host", "port"), [("localhost", 1), ("", 1), ("1.2.3.4", 65536)])
def test_what_is_no_address(host: str, port: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        Address.from_text(host, port)


def test_an_unknown_transport_still_prints() -> None:
    assert str(Address.from_text("1.2.3.4", 5, 9)) == "1.2.3.4:5/9"
