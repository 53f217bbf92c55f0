"""The playout clock, in virtual time."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.backend_frame import Cleared, Mark, Played
from dataplane.proto.errors import BadPacket
from dataplane.proto.playout import (
    MAX_CATCH_UP_FRAMES,
    MAX_MARKS,
    SETTLE_FRAMES,
    Notice,
    OutgoingFrame,
    Overrun,
    Playout,
    Started,
    Stopped,
    encode_notice,
)

MS = 1_000_000
S = 1000 * MS
T0 = 77 * S + 12_345  # no round number, as a real clock's


def pcm(ms: float, rate: int = 16000, value: int = 1000) -> bytes:
    return array("h", [value] * round(ms * rate / 1000)).tobytes()


def ramp(samples: int, first: int = 1) -> bytes:
    """Samples that tell their own place: first, first + 1, ..."""
    return array("h", [(first + i) % 30000 + 1 for i in range(samples)]).tobytes()


class Run:
    """A playout and its clock: actions at their times, timers when due (or late)."""

    def __init__(self, playout: Playout, late_ns: Callable[[], int] = lambda: 0) -> None:
        self.playout = playout
        self.now_ns = T0
        self.sent: list[tuple[float, OutgoingFrame]] = []  # ms since T0
        self.notices: list[tuple[float, Notice]] = []
        self.wakeups = 0
        self._late_ns = late_ns

    def at(self, ms: float) -> Playout:
        """Let time pass up to ms after T0; then the playout, to be acted on."""
        end_ns = T0 + round(ms * MS)
        while (due_ns := self.playout.next_timeout()) is not None:
            due_ns = max(due_ns, self.now_ns) + self._late_ns()
            if due_ns > end_ns:
                break
            self.now_ns = due_ns
            self.tick()
        self.now_ns = end_ns
        self._drain()
        return self.playout

    def tick(self) -> None:
        self.wakeups += 1
        now = (self.now_ns - T0) / MS
        self.sent += [(now, frame) for frame in self.playout.handle_timer(self.now_ns)]
        self._drain()

    def _drain(self) -> None:
        now = (self.now_ns - T0) / MS
        self.notices += [(now, notice) for notice in self.playout.poll_notices()]

    # --- acting ---

    def push(self, ms: float, data: bytes) -> int:
        return self.at(ms).push(data, self.now_ns)

    def end(self, ms: float) -> None:
        self.at(ms).end(self.now_ns)

    def mark(self, ms: float, name: str) -> None:
        self.at(ms).mark(name, self.now_ns)

    def clear(self, ms: float, generation: int) -> None:
        self.at(ms).clear(generation, self.now_ns)

    # --- looking ---

    @property
    def times(self) -> list[float]:
        return [ms for ms, _ in self.sent]

    @property
    def frames(self) -> list[OutgoingFrame]:
        return [frame for _, frame in self.sent]

    @property
    def pcm(self) -> bytes:
        return b"".join(frame.pcm for frame in self.frames)

    def of(self, *kinds: type[Notice]) -> list[tuple[float, Notice]]:
        return [(ms, notice) for ms, notice in self.notices if isinstance(notice, kinds)]


SILENCE = bytes(640)


# --- frames on their deadlines ---


def test_idle_costs_nothing() -> None:
    playout = Playout(16000)
    assert playout.next_timeout() is None
    assert playout.handle_timer(T0) == []
    assert playout.poll_notices() == []
    playout.end(T0)
    assert playout.next_timeout() is None


@pytest.mark.parametrize("rate", [8000, 12000, 16000, 24000, 48000])
def test_an_utterance_at_every_rate(rate: int) -> None:
    run = Run(Playout(rate, rtp_ts_base=2**32 - 2000))
    said = ramp(rate // 50 * 10)
    run.push(0, said)
    run.end(0)
    run.at(2000)
    assert run.times == [20 * i for i in range(10 + SETTLE_FRAMES)]
    assert run.pcm == said + bytes(rate // 50 * 2 * SETTLE_FRAMES)
    assert [f.rtp_ts for f in run.frames] == [
        (2**32 - 2000 + 960 * i) % 2**32 for i in range(10 + SETTLE_FRAMES)
    ]
    assert [f.marker for f in run.frames] == [True] + [False] * (9 + SETTLE_FRAMES)
    assert [f.deadline_ns for f in run.frames] == [T0 + 20 * MS * i for i in range(15)]
    assert run.playout.next_timeout() is None
    assert run.wakeups == 15


def test_deadlines_do_not_drift_however_late_the_timer_is() -> None:
    rng = random.Random(4)
    run = Run(Playout(16000), late_ns=lambda: rng.randrange(19 * MS))
    run.push(0, pcm(20_000))
    run.end(0)
    run.at(25_000)
    assert [f.deadline_ns for f in run.frames] == [T0 + 20 * MS * i for i in range(1005)]
    assert [f.rtp_ts for f in run.frames] == [960 * i for i in range(1005)]
    assert all(0 <= ms - 20 * i < 19 for i, ms in enumerate(run.times))


def test_a_very_late_timer_sends_a_few_and_then_begins_anew() -> None:
    run = Run(Playout(16000))
    said = ramp(320 * 30)
    run.push(0, said)
    run.end(0)
    run.at(0)
    run.now_ns = T0 + 1000 * MS  # the process was stopped for a second
    run.tick()
    run.at(3000)
    burst = 1 + MAX_CATCH_UP_FRAMES
    assert run.times[:burst] == [0] + [1000] * MAX_CATCH_UP_FRAMES
    assert run.times[burst:] == [1020 + 20 * i for i in range(30 - burst + SETTLE_FRAMES)]
    assert run.pcm[: len(said)] == said  # nothing is dropped
    assert [f.rtp_ts for f in run.frames[:burst]] == [960 * i for i in range(burst)]
    assert run.frames[burst].rtp_ts == 1020 * 48  # wall clock
    assert [i for i, f in enumerate(run.frames) if f.marker] == [0, burst]


def test_a_timer_called_early_does_nothing() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(100))
    run.at(0)
    assert run.playout.handle_timer(T0 + 20 * MS - 1) == []


def test_rtp_time_is_wall_time_across_silence() -> None:
    run = Run(Playout(16000))
    for start in (0, 1003, 5000.5):
        run.push(start, pcm(60))
        run.end(start)
    run.at(6000)
    starts = [(ms, f) for ms, f in run.sent if f.marker]
    assert [ms for ms, _ in starts] == [0, 1003, 5000.5]
    assert [f.rtp_ts for _, f in starts] == [0, 1003 * 48, 240024]
    assert len(run.sent) == 3 * (3 + SETTLE_FRAMES)


# --- the lead ---


def test_the_start_waits_for_the_lead() -> None:
    run = Run(Playout(16000, lead_ms=60))
    run.push(0, pcm(20))
    run.push(10, pcm(20))
    run.push(15, pcm(20))
    run.at(100)
    assert run.times[0] == 15


def test_the_start_waits_no_longer_than_the_lead_lasts() -> None:
    run = Run(Playout(16000, lead_ms=60))
    run.push(0, pcm(20))
    run.push(30, pcm(20))
    run.at(100)
    assert run.times[0] == 60


def test_end_ends_the_waiting() -> None:
    run = Run(Playout(16000, lead_ms=60))
    run.push(0, ramp(160))
    run.end(10)
    run.at(300)
    assert run.times == [10 + 20 * i for i in range(1 + SETTLE_FRAMES)]
    assert run.pcm == ramp(160) + bytes(320) + SILENCE * SETTLE_FRAMES


def test_no_lead_starts_with_the_first_sample_and_waits_for_the_frame() -> None:
    run = Run(Playout(16000, lead_ms=0))
    run.push(0, ramp(160))
    run.push(5, ramp(160, 161))
    run.push(10, ramp(320, 321))
    run.end(10)
    run.at(300)
    assert run.times[:2] == [5, 20]
    assert run.pcm[:1280] == ramp(640)


# --- a backend that is late ---


def test_a_frame_that_comes_in_pieces_is_sent_when_it_is_whole() -> None:
    """The slots stay where they were: the client's jitter buffer takes up the lateness."""
    run = Run(Playout(16000))
    run.push(0, ramp(320 + 100))
    run.push(27, ramp(100, 421))
    run.push(31, ramp(120, 521))
    run.push(35, ramp(320, 641))
    run.end(35)
    run.at(300)
    assert run.times[:3] == [0, 31, 40]
    assert run.frames[1].deadline_ns == T0 + 31 * MS  # not our lateness
    assert [f.rtp_ts for f in run.frames[:3]] == [0, 960, 1920]
    assert run.pcm[: 3 * 640] == ramp(960)
    assert [f.marker for f in run.frames[:3]] == [True, False, False]


def test_half_a_frame_is_padded_after_waiting_a_frame() -> None:
    run = Run(Playout(16000))
    run.push(0, ramp(320 + 100))
    run.at(400)
    # Slot 20 is sent at 40 with what there was; slot 40 and on are silence.
    assert run.times == [0, 40, 40, 60, 80, 100, 120]
    assert run.pcm == ramp(420) + bytes(440) + SILENCE * SETTLE_FRAMES
    assert [f.rtp_ts for f in run.frames] == [960 * i for i in range(7)]


def test_end_in_the_waiting_pads_at_once() -> None:
    run = Run(Playout(16000))
    run.push(0, ramp(320 + 100))
    run.end(29)
    run.at(400)
    assert run.times[:3] == [0, 29, 40]
    assert run.pcm[:1280] == ramp(420) + bytes(440)


def test_nothing_at_all_leaves_one_slot_to_the_client() -> None:
    run = Run(Playout(16000))
    run.push(0, ramp(320))
    run.at(400)
    assert run.times == [0, 40, 60, 80, 100, 120]
    assert [f.rtp_ts for f in run.frames] == [0, *(960 * i for i in range(2, 7))]
    assert run.of(Started, Stopped) == [(0, Started(0)), (120, Stopped(0))]


def test_a_stalled_backend_begins_a_new_spurt_on_the_same_slots() -> None:
    run = Run(Playout(16000))
    run.push(0, ramp(320))
    run.push(67, ramp(640, 321))
    run.end(67)
    run.at(400)
    assert run.times == [0, 40, 60, 80, 100, 120, 140, 160, 180, 200]
    assert [ms for ms, f in run.sent if f.marker] == [0, 80]
    assert run.frames[3].pcm + run.frames[4].pcm == ramp(640, 321)
    # For the listener it was one utterance.
    assert run.of(Started, Stopped) == [(0, Started(0)), (120, Stopped(0))]


def test_a_backend_in_real_time_with_jitter_plays_without_a_gap() -> None:
    """An echo: a frame every 20 ms, up to 19 ms late. Once the first is out, none is short."""
    rng = random.Random(9)
    run = Run(Playout(16000))
    arrivals = sorted(i * 20 + rng.random() * 19 for i in range(500))
    for i, ms in enumerate(arrivals):
        run.push(ms, ramp(320, 320 * i))
    run.end(arrivals[-1])
    run.at(12_000)
    audio = [f for f in run.frames if f.pcm != SILENCE]
    assert b"".join(f.pcm for f in audio) == b"".join(ramp(320, 320 * i) for i in range(500))
    assert len(run.frames) - len(audio) <= 2 * SETTLE_FRAMES


def test_audio_that_waits_out_the_settling_starts_in_its_own_time() -> None:
    run = Run(Playout(16000, lead_ms=100))
    run.push(0, pcm(20))
    run.end(0)
    run.push(95, pcm(20))  # SETTLING until slot 100; the lead is over at 195
    run.at(1000)
    starts = [ms for ms, f in run.sent if f.marker]
    assert starts == [0, 195]


def test_samples_of_two_utterances_in_a_row_are_not_torn_apart() -> None:
    run = Run(Playout(16000))
    run.push(0, ramp(500))
    run.end(0)
    run.push(1, ramp(140, 501))
    run.end(1)
    run.at(400)
    assert run.pcm[:1280] == ramp(640)
    assert run.of(Stopped) == [(40, Stopped(0))]


# --- CLEAR ---


def old_audio_after(run: Run, ms: float) -> list[tuple[float, array[int]]]:
    """Frames sent after ms that still have sound in them."""
    return [(t, array("h", f.pcm)) for t, f in run.sent if t > ms and any(f.pcm)]


@pytest.mark.parametrize("at", [40.0, 40.001, 47, 59.9])
def test_clear_stops_the_audio_within_one_frame_and_fades(at: float) -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(10_000, value=10_000))
    run.clear(at, 1)
    run.at(1000)
    [(ms, faded)] = old_audio_after(run, at)
    assert ms == 60  # the next slot
    assert max(i for i, sample in enumerate(faded) if sample) < 160  # 10 ms
    steps = [b - a for a, b in itertools.pairwise([10_000, *faded[:160]])]
    assert all(-110 <= step <= 0 for step in steps)  # no click: from full to nothing, smoothly
    assert run.times[4:] == [80, 100, 120, 140, 160]
    assert [f.generation for f in run.frames[3:]] == [0, 1, 1, 1, 1, 1]


def test_cleared_says_what_was_heard_and_marks_come_back() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(100))
    run.mark(0, "a")
    run.push(0, pcm(100))
    run.mark(0, "b")
    run.push(0, pcm(10_000))
    run.mark(0, "c")
    run.clear(155, 1)
    run.push(155, pcm(60))
    run.mark(155, "d")
    run.end(155)
    run.at(1000)
    assert [(ms, n) for ms, n in run.notices if not isinstance(n, Played)] == [
        (0, Started(0)),
        (80, Mark("a")),
        (155, Cleared(0, 8 * 320)),
        (155, Mark("b")),
        (155, Mark("c")),
        (180, Started(1)),
        (220, Mark("d")),
        (240, Stopped(1)),
    ]


def test_the_new_generation_plays_in_the_slot_after_the_fade() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(10_000))
    run.clear(45, 1)
    run.push(46, ramp(640))
    run.end(46)
    run.at(1000)
    assert [(ms, f.generation, f.marker) for ms, f in run.sent[3:6]] == [
        (60, 0, False),
        (80, 1, True),
        (100, 1, False),
    ]
    assert run.frames[4].pcm + run.frames[5].pcm == ramp(640)
    played = [n for ms, n in run.of(Played) if ms >= 45]
    assert played[0] == Played(1, 0, 0, 30_000)
    assert played[-1] == Played(1, 640, 0, 30_000)


def test_clear_of_a_starved_utterance_fades_what_is_there() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(20) + pcm(5))
    run.clear(33, 1)
    run.at(500)
    [(ms, faded)] = old_audio_after(run, 0)
    assert ms == 33
    assert faded[79] == 0
    assert faded[0] > 900
    assert run.of(Cleared) == [(33, Cleared(0, 320))]


@pytest.mark.parametrize("lead_ms", [20, 200])
def test_clear_of_what_has_not_begun_is_never_heard(lead_ms: int) -> None:
    run = Run(Playout(16000, lead_ms=lead_ms))
    run.push(0, pcm(10))
    run.mark(0, "a")
    run.clear(5, 1)
    run.at(500)
    assert run.sent == []
    assert [n for _, n in run.notices] == [Cleared(0, 0), Mark("a"), Played(1, 0, 0, 30_000)]
    assert run.playout.next_timeout() is None


def test_clear_while_idle_answers_all_the_same() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(20))
    run.end(0)
    run.clear(500, 1)
    run.at(500)
    assert run.of(Cleared) == [(500, Cleared(0, 320))]
    assert len(run.sent) == 1 + SETTLE_FRAMES


def test_clear_twice_before_the_fade_left() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(10_000))
    run.clear(45, 1)
    run.push(46, pcm(10_000))
    run.clear(47, 2)
    run.push(48, ramp(320))
    run.end(48)
    run.at(500)
    assert [n for _, n in run.of(Cleared)] == [Cleared(0, 960), Cleared(1, 0)]
    assert [f.generation for f in run.frames[:6]] == [0, 0, 0, 0, 2, 2]
    assert run.frames[4].pcm == ramp(320)


@pytest.mark.parametrize("generation", [5, 4, 0])
def test_a_clear_with_an_old_number_still_clears(generation: int) -> None:
    """The stream is in order, so the backend means it; the label is its own affair."""
    run = Run(Playout(16000))
    run.clear(0, 5)
    run.push(0, pcm(1000))
    run.clear(50, generation)
    run.push(50, pcm(20))
    run.end(50)
    run.at(1000)
    assert [n for _, n in run.of(Cleared)] == [Cleared(0, 0), Cleared(5, 960)]
    assert [n for _, n in run.of(Played)][-1] == Played(generation, 320, 0, 30_000)


# --- heard ---


def test_heard_lags_behind_sent() -> None:
    run = Run(Playout(16000))
    run.playout.set_heard_lag(110 * MS)
    run.push(0, pcm(100))
    run.mark(0, "half")
    run.push(0, pcm(100))
    run.mark(0, "all")
    run.end(0)
    run.at(5000)
    # Frame 5 leaves at 80, frame 10 at 180.
    assert run.of(Mark) == [(200, Mark("half")), (290, Mark("all"))]
    played = run.of(Played)
    assert played[0] == (120, Played(0, 320, 60, 29_940))
    assert played[-1] == (290, Played(0, 3200, 0, 30_000))
    assert run.playout.next_timeout() is None


def test_a_mark_is_given_back_when_heard_though_all_is_sent() -> None:
    run = Run(Playout(16000))
    run.playout.set_heard_lag(500 * MS)
    run.push(0, pcm(40))
    run.mark(0, "two")
    run.end(0)
    run.at(5000)
    assert run.of(Mark) == [(520, Mark("two"))]
    assert run.wakeups == 2 + SETTLE_FRAMES + 1


def test_cleared_leaves_out_what_is_on_its_way() -> None:
    run = Run(Playout(16000))
    run.playout.set_heard_lag(70 * MS)
    run.push(0, pcm(10_000))
    run.clear(205, 1)
    assert run.of(Cleared) == []
    run.at(205)
    assert run.of(Cleared) == [(205, Cleared(0, 7 * 320))]  # sent at 0, 20, ... 120


def test_lag_is_bounded_and_heard_never_goes_back() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(400))
    run.at(100)
    run.playout.set_heard_lag(-5)
    run.playout.set_heard_lag(10**12)
    run.clear(1000, 1)
    run.at(1000)
    assert run.of(Cleared) == [(1000, Cleared(0, 6 * 320))]


def test_a_mark_with_nothing_before_it_comes_back_at_once() -> None:
    run = Run(Playout(16000))
    run.mark(3, "here")
    run.at(3)
    assert run.of(Mark) == [(3, Mark("here"))]
    run.push(3, pcm(20))
    run.end(3)
    run.mark(900, "after")
    run.at(900)
    assert run.of(Mark)[1:] == [(900, Mark("after"))]


def test_a_mark_within_a_frame_comes_back_with_the_frame() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(25))
    run.mark(0, "in the second")
    run.push(0, pcm(75))
    run.at(200)
    assert run.of(Mark) == [(20, Mark("in the second"))]


def test_marks_are_bounded() -> None:
    playout = Playout(16000)
    playout.push(pcm(20), T0)
    for i in range(MAX_MARKS):
        playout.mark(str(i), T0)
    with pytest.raises(BadPacket) as caught:
        playout.mark("one more", T0)
    assert caught.value.reason == "backend_bad_frame"


# --- PLAYED ---


def test_played_every_100_ms_and_at_changes() -> None:
    rng = random.Random(5)
    run = Run(Playout(24000), late_ns=lambda: rng.randrange(3 * MS))
    run.push(0, pcm(450, 24000))
    run.end(0)
    run.push(2000, pcm(20, 24000))
    run.end(2000)
    run.at(5000)
    assert [(round(ms, -1), n) for ms, n in run.of(Played)] == [
        (0, Played(0, 480, 430, 29_570)),
        (100, Played(0, 6 * 480, 330, 29_670)),
        (200, Played(0, 11 * 480, 230, 29_770)),
        (300, Played(0, 16 * 480, 130, 29_870)),
        (400, Played(0, 21 * 480, 30, 29_970)),
        (440, Played(0, 450 * 24, 0, 30_000)),  # padding is not counted
        (2000, Played(0, 470 * 24, 0, 30_000)),
    ]


# --- the queue's bound ---


def test_overrun_is_refused_and_told_once() -> None:
    run = Run(Playout(16000, limit_ms=100))
    assert run.push(0, ramp(1500)) == 0
    assert (run.playout.queued_ms, run.playout.room_ms) == (93, 6)
    assert run.playout.push(ramp(200, 1501), T0) == 100
    assert run.playout.push(ramp(50), T0) == 50
    run.end(0)
    run.at(1000)
    assert run.of(Overrun) == [(0, Overrun(150))]
    assert run.pcm[:3200] == ramp(1600)
    assert run.push(1000, pcm(100)) == 0


def test_thirty_seconds_at_once_fit() -> None:
    run = Run(Playout(48000))
    assert run.playout.push(pcm(30_000, 48000), T0) == 0
    assert run.playout.push(pcm(1, 48000), T0) == 48
    run.end(0)
    run.at(40_000)
    assert len(run.sent) == 1500 + SETTLE_FRAMES


def test_half_a_sample_is_a_bad_frame() -> None:
    run = Run(Playout(16000))
    with pytest.raises(BadPacket) as caught:
        run.push(0, b"\x00" * 3)
    assert caught.value.reason == "backend_bad_frame"
    assert run.push(0, b"") == 0
    assert run.playout.next_timeout() is None


# --- another backend ---


def test_restart_fades_and_forgets() -> None:
    run = Run(Playout(16000, rtp_ts_base=5))
    run.push(0, pcm(10_000))
    run.mark(0, "never")
    run.at(45)
    run.playout.push(pcm(30_000), run.now_ns)  # an overrun that nobody is left to hear of
    run.playout.restart(16000)
    run.push(50, ramp(320))
    run.end(50)
    run.at(500)
    assert [any(f.pcm) for f in run.frames] == [True] * 5 + [False] * 5
    assert run.frames[4].pcm == ramp(320)
    assert [f.rtp_ts for f in run.frames] == [5 + 960 * i for i in range(10)]
    assert run.of(Mark, Cleared, Overrun) == []
    assert [n for _, n in run.of(Started, Stopped)] == [
        Started(0),
        Stopped(0),
        Started(0),
        Stopped(0),
    ]
    assert [n for ms, n in run.of(Played) if ms > 45] == [Played(0, 320, 0, 30_000)]


def test_restart_at_another_rate_goes_on_with_the_same_clock() -> None:
    run = Run(Playout(16000))
    run.push(0, pcm(10_000))
    run.at(45)
    run.playout.restart(48000)
    run.push(50, pcm(40, 48000))
    run.end(50)
    run.at(500)
    assert [len(f.pcm) for f in run.frames] == [640] * 3 + [1920] * 7
    assert [f.rtp_ts for f in run.frames] == [960 * i for i in range(10)]


# --- as a whole ---


def test_notices_for_the_backend_are_frames() -> None:
    assert encode_notice(Mark("a")) == b"\x31\x00\x00\x01a"
    assert encode_notice(Started(0)) is None
    assert encode_notice(Stopped(0)) is None
    overrun = encode_notice(Overrun(5))
    assert overrun is not None
    assert overrun[0] == 0x20
    assert b'"playout_overrun"' in overrun


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    lead_ms=st.sampled_from([0, 20, 60]),
    late_ms=st.sampled_from([0, 5, 150]),
    lag_ms=st.sampled_from([0, 30, 400]),
)
def test_whatever_a_backend_does(seed: int, lead_ms: int, late_ms: int, lag_ms: int) -> None:
    """Slots are whole frames apart, time never runs back, what is pushed is sent in order or
    was cleared, every mark comes back once, and all falls silent in the end."""
    rng = random.Random(seed)
    run = Run(Playout(8000, lead_ms, 500), lambda: rng.randint(0, late_ms * MS))
    run.playout.set_heard_lag(lag_ms * MS)
    at = 0.0
    pushed: dict[int, bytes] = {0: b""}
    generation = 0
    marks = []
    for step in range(60):
        at += rng.choice((0, 1, 7, 20, 20, 20, 33, 150))
        choice = rng.random()
        if choice < 0.75:
            data = ramp(rng.choice((1, 40, 160, 160, 160, 1000)), len(pushed[generation]) // 2)
            refused = run.push(at, data)
            pushed[generation] += data[: len(data) - 2 * refused]
        elif choice < 0.85:
            run.end(at)
        elif choice < 0.95:
            marks.append(str(step))
            run.mark(at, str(step))
        else:
            generation += 1
            pushed[generation] = b""
            run.clear(at, generation)
    run.end(at)
    run.at(at + 10_000)

    assert run.playout.next_timeout() is None
    assert run.playout.queued_ms == 0
    stamps = [f.rtp_ts for f in run.frames]
    assert all(b - a >= 960 for a, b in itertools.pairwise(stamps))
    assert all(f.deadline_ns <= T0 + round(ms * MS) for ms, f in run.sent)
    assert all(len(f.pcm) == 320 for f in run.frames)
    assert [n.name for _, n in run.notices if isinstance(n, Mark)] == marks
    cleared = {n.generation: n.samples for _, n in run.notices if isinstance(n, Cleared)}
    assert set(cleared) == set(range(generation))
    # Ramps have no zero samples, so padding and silence can be told from what was said.
    for g, data in pushed.items():
        sent = b"".join(f.pcm for f in run.frames if f.generation == g)
        said = array("h", [sample for sample in array("h", sent) if sample])
        whole = cleared[g] if g in cleared else len(data) // 2
        assert said[:whole].tobytes() == data[: 2 * whole]
        if lag_ms == 0 or g not in cleared:
            assert len(said) - whole <= 80  # the fade
    states = [type(n) for _, n in run.notices if isinstance(n, Started | Stopped | Cleared)]
    assert states.count(Started) <= states.count(Stopped) + states.count(Cleared)
