"""Where a datagram came from or goes to, in the form that shared memory and the hop use."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

# enum ek_transport in layout.h
TRANSPORT_UDP = 1
TRANSPORT_TCP = 2

V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
_TRANSPORT_NAMES = {TRANSPORT_UDP: "udp", TRANSPORT_TCP: "tcp"}


class Address(NamedTuple):
    """ip: 16 bytes, IPv4 mapped as ::ffff:a.b.c.d. port: host order. transport: ek_transport."""

    ip: bytes
    port: int
    transport: int

    @classmethod
    def from_text(cls, host: str, port: int, transport: int = TRANSPORT_UDP) -> Address:
        """Parse a numeric host. A zone ("fe80::1%eth0") is dropped: the 16 bytes have no room
        for it. Raises ValueError for a name, or a port outside 0..65535."""
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"port {port} is outside 0..65535")
        parsed = ipaddress.ip_address(host)
        if isinstance(parsed, ipaddress.IPv4Address):
            return cls(V4_MAPPED_PREFIX + parsed.packed, port, transport)
        return cls(parsed.packed, port, transport)

    @property
    def is_ipv4(self) -> bool:
        return self.ip[:12] == V4_MAPPED_PREFIX

    @property
    def host(self) -> str:
        """Numeric text; a mapped IPv4 address as plain IPv4."""
        if self.is_ipv4:
            return str(ipaddress.IPv4Address(self.ip[12:]))
        return str(ipaddress.IPv6Address(self.ip))

    def __str__(self) -> str:
        host = self.host if self.is_ipv4 else f"[{self.host}]"
        return f"{host}:{self.port}/{_TRANSPORT_NAMES.get(self.transport, self.transport)}"
