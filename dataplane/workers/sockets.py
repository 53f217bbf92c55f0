"""The sockets that outlive the workers (DESIGN law 4).

The supervisor makes them and every worker inherits the ones it needs, so what
the kernel has queued for a dead worker waits for its successor. They are named:

    udp4.0 udp6.0 …   one pair for each relay, all on the public port
    hop.0 …           one for each transceiver, on 127.0.0.1
    http              the control plane's listener
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress

import psutil

from dataplane.config import Config

# linux/in.h, asm-generic/socket.h; the socket module has no names for them.
IP_PKTINFO = 8
SO_RXQ_OVFL = 40
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32

# 4 MiB hold 80 ms of a relay at 50,000 datagrams a second: a worker's restart.
BUFFER_BYTES = 4 << 20
HTTP_BACKLOG = 512
# With port 0 the kernel chooses for IPv4; IPv6 may have that port taken.
ANY_PORT_ATTEMPTS = 16


class StartError(RuntimeError):
    """The node cannot start. The message says why and what to do."""


def make_sockets(config: Config) -> dict[str, socket.socket]:
    """All sockets of a fresh node, by name.

    Raises StartError when a port is taken; nothing stays open then.
    """
    if config.udp_port:
        return _make_sockets(config, config.udp_port)
    for _ in range(ANY_PORT_ATTEMPTS - 1):
        with suppress(StartError):
            return _make_sockets(config, 0)
    return _make_sockets(config, 0)


def _make_sockets(config: Config, udp_port: int) -> dict[str, socket.socket]:
    made: dict[str, socket.socket] = {}
    try:
        for index in range(config.relays):
            made[f"udp4.{index}"] = bind_public(socket.AF_INET, udp_port, exclusive=index == 0)
            udp_port = port_of(made["udp4.0"])
            if has_ipv6():
                exclusive = "udp6.0" not in made
                made[f"udp6.{index}"] = bind_public(socket.AF_INET6, udp_port, exclusive)
        for index in range(config.transceivers):
            made[f"hop.{index}"] = bind_hop(0)
        made["http"] = bind_http(*config.http)
    except BaseException:
        close_sockets(made)
        raise
    return made


def close_sockets(sockets: dict[str, socket.socket]) -> None:
    for sock in sockets.values():
        sock.close()
    sockets.clear()


def port_of(sock: socket.socket) -> int:
    port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


def has_ipv6() -> bool:
    """Whether this machine gives IPv6 sockets an address to bind to."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def bind_public(family: socket.AddressFamily, port: int, exclusive: bool) -> socket.socket:
    """One UDP socket on the public port, of a group that shares it.

    SO_REUSEPORT would let a second Earshot of the same user join the group and
    take a share of our packets unnoticed, so the first socket of a group binds
    without it: that fails if anybody is there.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        enlarge_buffers(sock)
        sock.setblocking(False)
        if not exclusive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        sock.close()
        raise StartError(_why("UDP", port, "--udp-port", error)) from None
    return sock


def bind_hop(port: int) -> socket.socket:
    """Where one transceiver hears the relays (DESIGN section 4)."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        enlarge_buffers(sock)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise StartError(f"hop socket on 127.0.0.1:{port}: {error.strerror}") from None
    return sock


def bind_http(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(HTTP_BACKLOG)
    except OSError as error:
        sock.close()
        raise StartError(_why(f"HTTP on {host}, TCP", port, "--http", error)) from None
    return sock


def enlarge_buffers(sock: socket.socket) -> int:
    """Both buffers to 4 MiB, past the sysctl limits as root.

    Returns the receive buffer's bytes (socket(7): the kernel doubles what was
    asked, for its own bookkeeping; here it is halved again).
    """
    for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def machine_addresses(with_loopback: bool) -> tuple[str, ...]:
    """Addresses that clients might reach: of interfaces that are up, without
    link-local ones (no client knows our scope id), IPv4 before IPv6; loopback
    first where asked for, or when there is nothing else."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        ipaddress.ip_address(address.address)
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address
    ]
    usable = {item for item in found if not (item.is_link_local or item.is_unspecified)}
    others = sorted((item for item in usable if not item.is_loopback), key=_preference)
    loopback = sorted((item for item in usable if item.is_loopback), key=_preference)
    chosen = [*loopback, *others] if with_loopback or not others else others
    return tuple(str(item) for item in chosen)


def _preference(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[int, int]:
    return (address.version, int(address))


def _why(what: str, port: int, flag: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        protocol = "u" if flag == "--udp-port" else "t"
        return (
            f"{what} port {port} is in use. See by whom with 'ss -l{protocol}np sport = :{port}'"
            f" and stop it, or choose another port with {flag}."
        )
    if error.errno == errno.EACCES:
        return (
            f"{what} port {port}: not permitted. Ports below 1024 need CAP_NET_BIND_SERVICE;"
            f" choose another with {flag}."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{what} port {port}: this machine does not have that address; change {flag}."
    return f"{what} port {port}: {error.strerror}; change {flag}."
