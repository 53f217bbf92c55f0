"""The order of packets, in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.errors import BadPacket
from dataplane.proto.jitter_buffer import MAX_HELD_BYTES, MAX_HELD_PACKETS, JitterBuffer, Ordered
from dataplane.proto.rtp import RtpPacket

MS = 1_000_000
WAIT = 60 * MS


def packet(seq: int, size: int = 1) -> RtpPacket:
    return RtpPacket(111, False, seq & 0xFFFF, seq * 960 & 0xFFFFFFFF, 7, bytes(size))


def seqs(ordered: list[Ordered]) -> list[int]:
    return [o.packet.seq for o in ordered]


def refused(buffer: JitterBuffer, seq: int, now_ns: int = 0) -> str:
    with pytest.raises(BadPacket) as caught:
        buffer.insert(packet(seq), now_ns)
    return caught.value.reason


def test_packets_in_order_leave_at_once() -> None:
    buffer = JitterBuffer(WAIT)
    for i in range(5):
        buffer.insert(packet(65533 + i), i * 20 * MS)
        [ordered] = buffer.poll()
        assert ordered == Ordered(
            packet(65533 + i), i * 20 * MS, 65536 + 65533 + i, lost=0, restarted=i == 0
        )
        assert buffer.next_timeout() is None


def test_reordered_packets_leave_in_order_and_nothing_is_lost() -> None:
    buffer = JitterBuffer(WAIT)
    for seq in (10, 12, 13, 11, 15, 14):
        buffer.insert(packet(seq), 0)
    assert seqs(buffer.poll()) == [10, 11, 12, 13, 14, 15]
    assert (buffer.lost, buffer.late, buffer.duplicates) == (0, 0, 0)
    assert buffer.next_timeout() is None


def test_a_gap_waits_from_when_it_was_noticed_and_no_longer() -> None:
    buffer = JitterBuffer(WAIT)
    buffer.insert(packet(10), 0)
    buffer.insert(packet(12), 40 * MS)
    buffer.insert(packet(13), 60 * MS)
    assert seqs(buffer.poll()) == [10]
    assert buffer.next_timeout() == 40 * MS + WAIT
    buffer.handle_timer(40 * MS + WAIT - 1)
    assert buffer.poll() == []
    buffer.handle_timer(40 * MS + WAIT)
    ordered = buffer.poll()
    assert [(o.packet.seq, o.lost) for o in ordered] == [(12, 1), (13, 0)]
    assert buffer.lost == 1
    assert buffer.next_timeout() is None


def test_each_gap_has_its_own_deadline() -> None:
    buffer = JitterBuffer(WAIT)
    for seq, at in ((10, 0), (13, 10), (15, 30)):
        buffer.insert(packet(seq), at * MS)
    assert buffer.next_timeout() == 70 * MS
    buffer.handle_timer(70 * MS)
    assert [(o.packet.seq, o.lost) for o in buffer.poll()] == [(10, 0), (13, 2)]
    assert buffer.next_timeout() == 90 * MS
    buffer.insert(packet(14), 80 * MS)
    assert seqs(buffer.poll()) == [14, 15]
    assert buffer.next_timeout() is None


def test_half_filled_gap_tells_what_was_lost_where() -> None:
    buffer = JitterBuffer(WAIT)
    for seq in (10, 15, 12):
        buffer.insert(packet(seq), 0)
    buffer.handle_timer(WAIT)
    assert [(o.packet.seq, o.lost) for o in buffer.poll()] == [(10, 0), (12, 1), (15, 2)]
    assert buffer.lost == 3


def test_a_later_arrival_also_passes_time() -> None:
    """The timer may be called late; the gap is given up by the next packet all the same."""
    buffer = JitterBuffer(WAIT)
    for seq, at in ((10, 0), (12, 20), (13, 100)):
        buffer.insert(packet(seq), at * MS)
    assert seqs(buffer.poll()) == [10, 12, 13]


def test_a_packet_that_beats_a_late_timer_is_not_late() -> None:
    buffer = JitterBuffer(WAIT)
    for seq, at in ((10, 0), (12, 20), (11, 500)):
        buffer.insert(packet(seq), at * MS)
    assert seqs(buffer.poll()) == [10, 11, 12]
    assert (buffer.lost, buffer.late) == (0, 0)


def test_late_and_duplicate_are_told_apart() -> None:
    buffer = JitterBuffer(WAIT)
    for seq in (10, 12):
        buffer.insert(packet(seq), 0)
    assert refused(buffer, 12) == "drop_rtp_duplicate"  # held
    assert refused(buffer, 10) == "drop_rtp_duplicate"  # gone
    buffer.handle_timer(WAIT)
    assert buffer.lost == 1
    assert refused(buffer, 11) == "drop_rtp_late"
    assert (buffer.lost, buffer.late) == (0, 1)
    assert refused(buffer, 11) == "drop_rtp_duplicate"
    assert refused(buffer, 9) == "drop_rtp_late"  # before the first of all
    assert (buffer.lost, buffer.late, buffer.duplicates) == (0, 2, 3)


def test_no_wait_gives_up_at_once() -> None:
    buffer = JitterBuffer(0)
    for seq in (10, 12):
        buffer.insert(packet(seq), 5)
    assert seqs(buffer.poll()) == [10, 12]
    assert refused(buffer, 11, 6) == "drop_rtp_late"


@pytest.mark.parametrize("jump", [3001, -3001, 32768, 20000])
def test_a_jump_restarts_the_order(jump: int) -> None:
    buffer = JitterBuffer(WAIT)
    for seq in (10, 11, 13):
        buffer.insert(packet(seq), 0)
    buffer.insert(packet(13 + jump), 0)
    ordered = buffer.poll()
    assert [(o.packet.seq, o.lost, o.restarted) for o in ordered] == [
        (10, 0, True),
        (11, 0, False),
        (13, 1, False),
        ((13 + jump) & 0xFFFF, 0, True),
    ]
    buffer.insert(packet(14 + jump), 0)
    assert [o.restarted for o in buffer.poll()] == [False]


def test_a_long_gap_is_no_restart() -> None:
    buffer = JitterBuffer(WAIT)
    buffer.insert(packet(10), 0)
    buffer.insert(packet(3010), 0)
    buffer.handle_timer(WAIT)
    assert [(o.packet.seq, o.lost) for o in buffer.poll()] == [(10, 0), (3010, 2999)]


def test_restart_by_hand_gives_out_what_is_held() -> None:
    buffer = JitterBuffer(WAIT)
    for seq in (10, 12):
        buffer.insert(packet(seq), 0)
    buffer.restart()
    buffer.insert(packet(11), 0)
    assert [(o.packet.seq, o.restarted) for o in buffer.poll()] == [
        (10, True),
        (12, False),
        (11, True),
    ]


def test_memory_is_bounded_in_packets() -> None:
    buffer = JitterBuffer(10**15)
    buffer.insert(packet(0), 0)
    for seq in range(2, MAX_HELD_PACKETS + 3):
        buffer.insert(packet(seq), 0)
    assert seqs(buffer.poll()) == [0, *range(2, MAX_HELD_PACKETS + 3)]
    assert buffer.next_timeout() is None


def test_memory_is_bounded_in_bytes() -> None:
    buffer = JitterBuffer(10**15)
    buffer.insert(packet(0), 0)
    for count in range(MAX_HELD_BYTES // 1000 + 1):
        assert seqs(buffer.poll()) == ([0] if count == 0 else [])
        buffer.insert(packet(2 + count, 1000), 0)
    assert len(buffer.poll()) == MAX_HELD_BYTES // 1000 + 1


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0, 0.02, 0.3]),
    duplication=st.sampled_from([0, 0.05, 0.3]),
    jitter_ms=st.sampled_from([0, 5, 50, 200]),
    start=st.sampled_from([0, 65500, 32700]),
)
def test_seeded_network(
    seed: int, loss: float, duplication: float, jitter_ms: int, start: int
) -> None:
    """Whatever the network does: the order holds, each packet leaves once or is refused for
    one reason, all adds up, and nothing waits longer than it may."""
    rng = random.Random(seed)
    arrivals = []
    for i in range(120):
        for _ in range(1 + (rng.random() < duplication)):
            if rng.random() >= loss:
                at_ns = i * 20 * MS + rng.randint(0, jitter_ms * MS)
                arrivals.append((at_ns, i))
    arrivals.sort()
    buffer = JitterBuffer(WAIT)
    left: list[tuple[int, int, int]] = []  # when, number, lost before
    refusals: dict[str, int] = {"drop_rtp_late": 0, "drop_rtp_duplicate": 0}
    now_ns = 0

    def drain() -> None:
        for o in buffer.poll():
            left.append((now_ns, (o.packet.seq - start) & 0xFFFF, o.lost))
            assert now_ns - o.arrival_ns <= WAIT

    for at_ns, i in arrivals:
        while (due_ns := buffer.next_timeout()) is not None and due_ns < at_ns:
            now_ns = due_ns
            buffer.handle_timer(now_ns)
            drain()
        now_ns = at_ns
        try:
            buffer.insert(packet(start + i), now_ns)
        except BadPacket as error:
            refusals[error.reason] += 1
        drain()
    while (due_ns := buffer.next_timeout()) is not None:
        now_ns = due_ns
        buffer.handle_timer(now_ns)
        drain()

    numbers = [number for _, number, _ in left]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + sum(refusals.values()) == len(arrivals)
    assert refusals == {"drop_rtp_late": buffer.late, "drop_rtp_duplicate": buffer.duplicates}
    assert sum(lost for _, _, lost in left) == (
        numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0
    )
    never_came = set(range(numbers[0], numbers[-1])) - {i for _, i in arrivals} if numbers else ()
    assert buffer.lost == len(never_came)
    if jitter_ms <= 50:
        assert buffer.late == sum(1 for _, i in arrivals if numbers and i < numbers[0])
