"""Puts the packets of one RTP stream in order. No playout clock: nothing waits but a gap.

A packet in order leaves at once. A packet beyond a gap waits until the gap is filled, or
until max_wait after that gap was noticed; then what is missing is given up for lost, and
comes too late from then on. Each gap has its own deadline; later gaps wait behind earlier
ones, so the deadlines pass in order.

A jump of more than MAX_DROPOUT packets either way is a restart of the source: what is held
is given out, and the order begins anew with the packet that jumped.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from dataplane.proto.errors import BadPacket
from dataplane.proto.rtcp import MAX_DROPOUT
from dataplane.proto.rtp import RtpPacket, seq_delta

MAX_HELD_PACKETS = 256
MAX_HELD_BYTES = 128 * 1024
"""Bounds on what waits behind gaps: far over what max_wait lets an honest client fill (200 ms
at 400 packets a second), so only a flood reaches them; the oldest gap is then given up."""

_MAX_LOST_REMEMBERED = 1024
"""Given-up packets by which a late one is told from a duplicate; as many as libsrtp's widest
replay window lets through."""


class Ordered(NamedTuple):
    """A packet in its place. packet_index: seq without its wrap. lost: packets just before it that
    never came. restarted: the first of a source, or after a jump."""

    packet: RtpPacket
    arrival_ns: int
    packet_index: int
    lost: int
    restarted: bool


class _Gap(NamedTuple):
    end_index: int
    """The packet that showed the gap: those missing before it."""
    deadline_ns: int


class JitterBuffer:
    """See the module's docstring. max_wait_ns: 0 gives every gap up at once."""

    def __init__(self, max_wait_ns: int) -> None:
        self._max_wait_ns = max_wait_ns
        self._first_index = 0
        self._next_index = -1  # of the packet to leave next; -1: the next to come begins
        self._highest_index = -1
        self._held: dict[int, tuple[RtpPacket, int]] = {}
        self._held_bytes = 0
        self._gaps: deque[_Gap] = deque()
        self._lost_indexes: deque[int] = deque(maxlen=_MAX_LOST_REMEMBERED)
        self._skipped = 0  # packets given up just before _next_index
        self._restarted = True
        self._ready: list[Ordered] = []
        self.lost = 0
        """Packets given up that have not come since."""
        self.late = 0
        """Packets that came after they had been given up."""
        self.duplicates = 0

    def insert(self, packet: RtpPacket, arrival_ns: int) -> None:
        """Take a packet in. Raises BadPacket("drop_rtp_late" or "drop_rtp_duplicate")."""
        if self._next_index < 0:
            self._begin(packet.seq)
        ahead = seq_delta(packet.seq, self._highest_index)
        if abs(ahead) > MAX_DROPOUT:
            self.restart()
            self._begin(packet.seq)
            ahead = 1
        index = self._highest_index + ahead
        if index < self._next_index:
            self._refuse_old(index)
        if index == self._next_index and not self._held:
            self._highest_index = index
            self._give_out(packet, arrival_ns)
        else:
            self._hold(packet, arrival_ns, index)
        if self._gaps:
            self._expire(arrival_ns)

    def _begin(self, seq: int) -> None:
        """Let seq be the next in order, far enough up that no index gets negative."""
        self._first_index = self._next_index = seq + 0x10000
        self._highest_index = self._next_index - 1
        self._lost_indexes.clear()
        self._restarted = True

    def restart(self) -> None:
        """Give out what is held, and begin anew with the packet that comes next."""
        while self._gaps:
            self._give_up_to(self._gaps[0].end_index)
        self._next_index = -1

    def _refuse_old(self, index: int) -> None:
        if index in self._lost_indexes:
            self._lost_indexes.remove(index)
            self.lost -= 1
        elif index >= self._first_index:
            self.duplicates += 1
            raise BadPacket("drop_rtp_duplicate", f"index {index}")
        self.late += 1
        raise BadPacket("drop_rtp_late", f"index {index}, now at {self._next_index}")

    def _hold(self, packet: RtpPacket, arrival_ns: int, index: int) -> None:
        if index in self._held:
            self.duplicates += 1
            raise BadPacket("drop_rtp_duplicate", f"index {index}")
        self._held[index] = (packet, arrival_ns)
        self._held_bytes += len(packet.payload)
        if index > self._highest_index:
            if index > self._highest_index + 1:
                self._gaps.append(_Gap(index, arrival_ns + self._max_wait_ns))
            self._highest_index = index
        self._release()
        while len(self._held) > MAX_HELD_PACKETS or self._held_bytes > MAX_HELD_BYTES:
            self._give_up_to(self._gaps[0].end_index)

    def handle_timer(self, now_ns: int) -> None:
        """Give up the gaps whose time is over."""
        self._expire(now_ns)

    def _expire(self, now_ns: int) -> None:
        while self._gaps and self._gaps[0].deadline_ns <= now_ns:
            self._give_up_to(self._gaps[0].end_index)

    def next_timeout(self) -> int | None:
        """When the oldest gap is to be given up."""
        return self._gaps[0].deadline_ns if self._gaps else None

    def poll(self) -> list[Ordered]:
        """What has left, in order."""
        ready, self._ready = self._ready, []
        return ready

    def _give_up_to(self, end_index: int) -> None:
        """Pass over all that is missing before end_index, which is held."""
        for index in sorted(i for i in self._held if i <= end_index):
            missing = range(self._next_index, index)
            self._lost_indexes.extend(missing[-_MAX_LOST_REMEMBERED:])
            self._skipped += len(missing)
            self.lost += len(missing)
            self._next_index = index
            self._give_out(*self._take_held())
        self._release()

    def _release(self) -> None:
        while self._next_index in self._held:
            self._give_out(*self._take_held())
        while self._gaps and self._gaps[0].end_index <= self._next_index:
            self._gaps.popleft()

    def _take_held(self) -> tuple[RtpPacket, int]:
        packet, arrival_ns = self._held.pop(self._next_index)
        self._held_bytes -= len(packet.payload)
        return packet, arrival_ns

    def _give_out(self, packet: RtpPacket, arrival_ns: int) -> None:
        self._ready.append(
            Ordered(packet, arrival_ns, self._next_index, self._skipped, self._restarted)
        )
        self._next_index += 1
        self._skipped = 0
        self._restarted = False
