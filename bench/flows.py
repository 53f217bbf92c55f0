"""Client addresses that send datagrams, the load that they send, and what arrives."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BUFFER_BYTES = 4 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; past the sysctl limit, as root
QUIET_S = 0.05  # nothing more arrives in this time: everything has


@contextlib.contextmanager
def open_flows(count: int, host: str, port: int) -> Iterator[list[socket.socket]]:
    """So many UDP sockets connected to the address, each a client of its own.

    Raises the soft limit of open files when it must (OSError at the hard one).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 256), hard))
    with contextlib.ExitStack() as stack:
        flows = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", 0))
            sock.connect((host, port))
            flows.append(sock)
        yield flows


def receiving_socket() -> socket.socket:
    """A UDP socket on a free port of loopback with the edge's buffer size, blocking."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    sock.bind(("127.0.0.1", 0))
    return sock


@dataclass(frozen=True)
class Blast:
    """What the load generator says of its run."""

    sent: int
    errors: int
    seconds: float


def blast(
    program: Path, flows: Sequence[socket.socket], rate: int, seconds: float, size: int
) -> Blast:
    """Runs load/blast.c: rate datagrams a second in all (0: as fast as it can) of size bytes."""
    fds = [flow.fileno() for flow in flows]
    result = subprocess.run(
        [str(program), str(rate), str(seconds), str(size), *map(str, fds)],
        pass_fds=fds,
        check=True,
        capture_output=True,
    )
    return Blast(**json.loads(result.stdout))


class Sink:
    """The process that counts what a forwarder delivered (load/sink.c)."""

    _TOTALS = struct.Struct("=QQQ")

    def __init__(self, program: Path, *, hop: bool) -> None:
        """hop: count the records inside hop datagrams."""
        self.socket = receiving_socket()
        stats_fd = os.memfd_create("sink-totals")
        try:
            os.ftruncate(stats_fd, mmap.PAGESIZE)
            self._totals = mmap.mmap(stats_fd, mmap.PAGESIZE)
            fds = (self.socket.fileno(), stats_fd)
            mode = "hop" if hop else "plain"
            self._process = subprocess.Popen([str(program), mode, *map(str, fds)], pass_fds=fds)
        finally:
            os.close(stats_fd)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()
        return host, port

    def totals(self) -> tuple[int, int]:
        """(datagrams, client packets in them) so far. AssertionError when one was no hop."""
        datagrams, packets, malformed = self._TOTALS.unpack_from(self._totals)
        assert malformed == 0, f"{malformed} datagrams were not what the sink counts"
        return datagrams, packets

    def settled(self) -> tuple[int, int]:
        """totals(), once nothing more arrives."""
        before = self.totals()
        while True:
            time.sleep(QUIET_S)
            now = self.totals()
            if now == before:
                return now
            before = now

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._totals.close()
        self.socket.close()
