"""Sending to clients straight from the public sockets (DESIGN section 4).

The transceiver holds dups of the sockets that the relays receive on, so a
client sees every answer come from the address and port that it addressed; the
local address is set per datagram, for hosts that have several.
"""

from __future__ import annotations

import socket
import struct

from dataplane.proto.address import Address

IP_PKTINFO = 8  # linux/in.h; the socket module has no name for it before 3.12
_UNKNOWN = bytes(16)


class PublicSockets:
    """The IPv4 and the IPv6 socket, either of which may be missing.

    The descriptors are shared with other processes, so their blocking mode is
    left alone and every call says MSG_DONTWAIT itself.
    """

    def __init__(self, udp4: socket.socket | None, udp6: socket.socket | None) -> None:
        self._udp4 = udp4
        self._udp6 = udp6

    def send(self, datagram: bytes, client: Address, local_ip: bytes) -> bool:
        """Send one datagram; False if the kernel would not take it."""
        try:
            if client.is_ipv4:
                return self._send4(datagram, client, local_ip)
            return self._send6(datagram, client, local_ip)
        except OSError:
            return False

    def _send4(self, datagram: bytes, client: Address, local_ip: bytes) -> bool:
        if self._udp4 is None:
            return False
        ancillary = []
        if local_ip != _UNKNOWN:
            # struct in_pktinfo: ifindex, spec_dst, addr (ip(7))
            pktinfo = struct.pack("=i4s4s", 0, local_ip[12:], bytes(4))
            ancillary.append((socket.IPPROTO_IP, IP_PKTINFO, pktinfo))
        target = (socket.inet_ntoa(client.ip[12:]), client.port)
        return self._udp4.sendmsg([datagram], ancillary, socket.MSG_DONTWAIT, target) > 0

    def _send6(self, datagram: bytes, client: Address, local_ip: bytes) -> bool:
        if self._udp6 is None:
            return False
        ancillary = []
        if local_ip != _UNKNOWN:
            # struct in6_pktinfo: addr, ifindex (RFC 3542 section 6)
            pktinfo = struct.pack("=16si", local_ip, 0)
            ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, pktinfo))
        target = (socket.inet_ntop(socket.AF_INET6, client.ip), client.port)
        return self._udp6.sendmsg([datagram], ancillary, socket.MSG_DONTWAIT, target) > 0
