"""What holds of the playout whatever backend, timer and network do (hypothesis).

A model keeps what was pushed and reads what is sent: every sample is non-zero
and unlike its neighbours, so that each frame shows which samples it holds.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from dataplane.proto.backend_frame import Cleared, Mark, Played
from dataplane.proto.opus import RATES
from dataplane.proto.playout import (
    FRAME_NS,
    MAX_CATCH_UP_FRAMES,
    OutgoingFrame,
    Overrun,
    Playout,
    Started,
    Stopped,
)

MS = 1_000_000
RTP_TICK_NS = MS // 48 + 1
LIMIT_MS = 400
"""Small, so that it is reached."""


@dataclass
class Generation:
    """What the model knows of what was said between two clears."""

    number: int
    accepted: array[int] = field(default_factory=lambda: array("h"))
    offered: int = 0
    refused: int = 0
    sent: int = 0
    sent_at: deque[tuple[int, int]] = field(default_factory=deque)
    heard: int = 0
    played: int = -1
    marks: deque[tuple[int, str]] = field(default_factory=deque)


class PlayoutMachine(RuleBasedStateMachine):
    @initialize(
        rate=st.sampled_from(RATES),
        lead_ms=st.sampled_from([0, 1, 20, 60]),
        base=st.sampled_from([0, 0xFFFFFFF0]),
        start_ns=st.integers(0, 10**15),
    )
    def begin(self, rate: int, lead_ms: int, base: int, start_ns: int) -> None:
        self.rate = rate
        self.base = base
        self.frame_samples = rate // 50
        self.now_ns = start_ns
        self.lag_ns = 0
        self.playout = Playout(rate, lead_ms=lead_ms, limit_ms=LIMIT_MS, rtp_ts_base=base)
        self.generation = Generation(0)
        self.cut: list[Generation] = []
        """Cleared since the last frame: the next frame may be the fade of one of them."""
        self.speaking = False
        self.sample = 0
        self.names = 0
        self.last_rtp_ts: int | None = None
        self.refusal_told = 0

    # --- what the backend does ---

    def _samples(self, count: int) -> array[int]:
        """None is zero, none loud: a fade of it is never louder."""
        pcm = array("h", ((self.sample + i) % 16_000 + 1 for i in range(count)))
        self.sample += count
        return pcm

    @rule(count=st.one_of(st.integers(0, 100), st.integers(0, 4000), st.integers(0, 24_000)))
    def push(self, count: int) -> None:
        pcm = self._samples(count)
        room_ms = self.playout.room_ms
        refused = self.playout.push(pcm.tobytes(), self.now_ns)
        assert 0 <= refused <= count
        g = self.generation
        g.offered += count
        g.refused += refused
        g.accepted.extend(pcm[: count - refused])
        if count * 1000 <= room_ms * self.rate:
            assert refused == 0, "it said that there was room"
        self.read_notices()

    @rule(frames=st.integers(0, 6))
    def push_frames(self, frames: int) -> None:
        self.push(frames * self.frame_samples)

    @rule()
    def end(self) -> None:
        self.playout.end(self.now_ns)
        self.read_notices()

    @rule(same_name=st.booleans())
    def mark(self, same_name: bool) -> None:
        self.names += not same_name
        name = f"m{self.names}"
        self.generation.marks.append((len(self.generation.accepted), name))
        self.note_heard()
        self.playout.mark(name, self.now_ns)
        self.read_notices()

    @rule(step=st.sampled_from([1, 1, 1, 5, 0x80000000]))
    def clear(self, step: int) -> None:
        old = self.generation
        self.note_heard()
        self.generation = Generation((old.number + step) & 0xFFFFFFFF)
        self.playout.clear(self.generation.number, self.now_ns)
        notices = self.playout.poll_notices()
        cleared = [i for i, n in enumerate(notices) if isinstance(n, Cleared)]
        assert len(cleared) == 1
        at = cleared[0]
        assert notices[at] == Cleared(old.number, old.heard)
        for notice in notices[:at]:
            self.read_notice(notice, old)
        returned = notices[at + 1 : at + 1 + len(old.marks)]
        assert returned == [Mark(name) for _, name in old.marks]
        rest = notices[at + 1 + len(old.marks) :]
        assert rest == [Played(self.generation.number, 0, 0, LIMIT_MS)]
        self.generation.played = 0
        self.cut.append(old)
        self.speaking = False

    @rule(lag_ms=st.one_of(st.integers(0, 300), st.sampled_from([-5, 2000, 10_000])))
    def set_lag(self, lag_ms: int) -> None:
        self.lag_ns = min(max(0, lag_ms), 2000) * MS
        self.playout.set_heard_lag(lag_ms * MS)

    @rule(rate=st.sampled_from(RATES))
    def restart(self, rate: int) -> None:
        """Another backend: it hears nothing of what its predecessor did."""
        old = self.generation
        self.playout.restart(rate)
        self.generation = Generation(0)
        for notice in self.playout.poll_notices():
            assert isinstance(notice, Started | Stopped)
            self.read_notice(notice, old)
        assert not self.speaking
        self.cut = [*self.cut, old] if rate == self.rate else []
        self.rate = rate
        self.frame_samples = rate // 50

    # --- what time does ---

    @rule(ns=st.one_of(st.integers(0, 50 * MS), st.integers(0, 2000 * MS)))
    def wait_with_a_punctual_timer(self, ns: int) -> None:
        until_ns = self.now_ns + ns
        while (due_ns := self.playout.next_timeout()) is not None and due_ns <= until_ns:
            self.now_ns = max(self.now_ns, due_ns)
            self.tick(punctual=True)
        self.now_ns = until_ns

    @rule(ns=st.one_of(st.integers(0, 50 * MS), st.integers(0, 500 * MS)))
    def wait_and_call_late(self, ns: int) -> None:
        self.now_ns += ns
        self.tick()

    @rule()
    def call_for_nothing(self) -> None:
        self.tick()

    @precondition(lambda self: hasattr(self, "playout"))
    @rule()
    def fall_silent(self) -> None:
        """The backend says no more: all is played, heard and told, and the timer rests."""
        steps = 0
        while (due_ns := self.playout.next_timeout()) is not None:
            self.now_ns = max(self.now_ns, due_ns)
            self.tick(punctual=True)
            steps += 1
            assert steps < 1000, "it never rests"
        g = self.generation
        assert g.sent == g.heard == len(g.accepted) == g.offered - g.refused
        assert not g.marks
        assert g.played == g.heard or (g.played == -1 and g.heard == 0)
        assert self.playout.queued_ms == 0
        assert not self.speaking

    def note_heard(self) -> None:
        g = self.generation
        while g.sent_at and g.sent_at[0][0] <= self.now_ns - self.lag_ns:
            g.heard = g.sent_at.popleft()[1]

    def tick(self, punctual: bool = False) -> None:
        frames = self.playout.handle_timer(self.now_ns)
        # Two at once: one that waited its whole slot for a backend that stalled, and the next.
        assert len(frames) <= (2 if punctual else MAX_CATCH_UP_FRAMES)
        spoke = [self.read_frame(frame, punctual) for frame in frames]
        self.note_heard()
        started = self.speaking
        for notice in self.playout.poll_notices():
            self.read_notice(notice, self.generation)
            started |= self.speaking
        assert started or not any(spoke), "audio without Started"
        due_ns = self.playout.next_timeout()
        assert due_ns is None or due_ns > self.now_ns, "it would be called for ever"

    # --- what is seen ---

    def read_frame(self, frame: OutgoingFrame, punctual: bool) -> bool:
        """Whether it speaks in the present generation."""
        pcm = array("h", frame.pcm)
        assert len(pcm) == self.frame_samples
        assert frame.deadline_ns <= self.now_ns
        self.read_clock(frame)
        if punctual:
            assert frame.deadline_ns == self.now_ns
            # A backend that stalls makes a frame late by up to a slot, the first one too,
            # from which the slots are counted here; they do not move for it.
            late_ns = abs(frame.deadline_ns - self.slot_ns)
            assert late_ns <= FRAME_NS + RTP_TICK_NS, "RTP time is not wall time"
        audible = len(pcm)
        while audible and pcm[audible - 1] == 0:
            audible -= 1
        g = self.generation
        cut, self.cut = self.cut, []
        if frame.generation != g.number or (audible and not self.is_next(pcm, audible)):
            self.read_fade(pcm, [old for old in cut if old.number == frame.generation])
            return False
        if audible == 0:
            return False
        g.sent += audible
        assert audible == len(pcm) or g.sent == len(g.accepted), "padded though there is more"
        g.sent_at.append((self.now_ns, g.sent))
        return True

    def is_next(self, pcm: array[int], audible: int) -> bool:
        g = self.generation
        return pcm[:audible] == g.accepted[g.sent : g.sent + audible]

    def read_fade(self, pcm: array[int], cut: list[Generation]) -> None:
        """One frame: the audio that would have come, growing fainter, over in 10 ms."""
        fade = pcm[: self.rate // 100]
        assert not any(pcm[len(fade) :])
        for old in cut:
            original = old.accepted[old.sent : old.sent + len(fade)]
            fainter = all(0 <= f <= s for f, s in zip(fade, original, strict=False))
            if fainter and not any(fade[len(original) :]):
                return
        raise AssertionError("samples that were not next, and are no fade either")

    def read_clock(self, frame: OutgoingFrame) -> None:
        if self.last_rtp_ts is None:
            assert frame.rtp_ts == self.base
            self.slot_ns = self.epoch_ns = frame.deadline_ns
            self.ticks = 0
        else:
            delta = (frame.rtp_ts - self.last_rtp_ts) & 0xFFFFFFFF
            assert delta < 0x80000000, "RTP time ran back"
            assert delta >= 960, "two frames in one slot"
            # A slot may be left to the client by a backend that stalls; any other
            # leap is the beginning of a talk-spurt (RFC 3551 4.1).
            assert frame.marker or delta in (960, 1920)
            self.ticks += delta
            self.slot_ns = self.epoch_ns + self.ticks * 1_000_000 // 48
        self.last_rtp_ts = frame.rtp_ts

    def read_notices(self) -> None:
        for notice in self.playout.poll_notices():
            self.read_notice(notice, self.generation)

    def read_notice(self, notice: object, g: Generation) -> None:
        match notice:
            case Played(number, heard, queued_ms, room_ms):
                assert number == g.number
                assert heard >= g.played, "PLAYED ran back"
                assert heard <= g.sent
                assert LIMIT_MS - 1 <= queued_ms + room_ms <= LIMIT_MS
                g.played = heard
            case Mark(name):
                position, expected = g.marks.popleft()
                assert name == expected, "marks out of order"
                assert position <= g.sent
            case Overrun(samples):
                self.refusal_told += samples
                assert samples > 0
            case Started():
                assert not self.speaking
                self.speaking = True
            case Stopped():
                assert self.speaking
                self.speaking = False
            case _:
                raise AssertionError(f"unexpected {notice}")

    @invariant()
    def what_is_queued_is_what_was_not_sent(self) -> None:
        if not hasattr(self, "playout"):
            return
        g = self.generation
        queued = len(g.accepted) - g.sent
        assert self.playout.queued_ms == queued * 1000 // self.rate
        assert queued * 1000 <= LIMIT_MS * self.rate
        assert self.playout.room_ms == (LIMIT_MS * self.rate - queued * 1000) // self.rate


PlayoutMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
TestPlayout = PlayoutMachine.TestCase
