"""The playout clock: what a backend says, cut into 20 ms frames, each at its deadline.

Theory. A frame's slot is the previous slot plus 20 ms exactly, never "now plus 20 ms", so
nothing drifts; the RTP timestamp is the slot's time on a 48 kHz clock, so it goes on through
silence. Frames flow only while there is something to say:

    state       its timer is             then                             goes to
    IDLE        none                     (a push)                         GATHERING
    GATHERING   when lead_ms of audio,   start an utterance               PLAYING
                END or lead_ms of time
                have come
    PLAYING     the next slot            a frame is queued: send it       PLAYING
                                         END: send the rest, padded       SETTLING
                                         less than a frame: wait          STARVED
    STARVED     when the frame is whole, send it late, for its slot       PLAYING
                END, or a slot later     send the rest, padded            SETTLING
    SETTLING    the next slot            audio has been gathered          PLAYING
                                         send silence, SETTLE_FRAMES      SETTLING
                                         all sent                         IDLE or GATHERING
    PLAYING, STARVED on CLEAR or restart: SETTLING, with a fade as its first frame.
    GATHERING on CLEAR or restart: IDLE.

A timer called late sends all that is due, up to MAX_CATCH_UP_FRAMES; what is later than
that is not made up for: the slots begin anew, and the audio goes on where it was.

Generations. Audio belongs to the generation that the last CLEAR named, 0 at first. Every
CLEAR stops the audio, whatever its number (the stream from the backend is in order, so none
is stale, and a barge-in must never be ignored): an older or equal number is taken as it is,
and samples are counted from 0 again. CLEARED names the generation that was cleared, and how
much of it had been heard at that moment; its faded remainder does not count.

Heard: a frame's samples count as heard heard_lag after the frame was sent (the way to the
client and the client's own buffer, as the caller estimates them).
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from dataplane.proto import events
from dataplane.proto.backend_frame import Cleared, Event, Mark, Played
from dataplane.proto.errors import BadPacket

FRAME_MS = 20
FRAME_NS = FRAME_MS * 1_000_000
SETTLE_FRAMES = 5
"""Silence after an utterance: lets the codec ring out, and the client's jitter buffer see that
it was not loss."""
MAX_CATCH_UP_FRAMES = 5
"""More at once would only sit in the client's jitter buffer as delay."""
FADE_MS = 10
"""From full to nothing at a cut: too short to be heard as speech, too long to click."""
PLAYED_INTERVAL_NS = 100_000_000
MAX_MARKS = 1024
MAX_HEARD_LAG_NS = 2_000_000_000
"""An estimate beyond this is a mistake; it bounds the frames that await being heard."""

_CLOCK_KHZ = 48  # RFC 7587 4.1
_BAD_FRAME = "backend_bad_frame"


class OutgoingFrame(NamedTuple):
    """pcm: 20 ms at rate_out. marker: first of a talk-spurt (RFC 3551 4.1). deadline_ns: when
    it was to leave (for one that the backend was late with: when it could)."""

    pcm: bytes
    rtp_ts: int
    marker: bool
    deadline_ns: int
    generation: int


@dataclass(frozen=True, slots=True)
class Started:
    """The first frame of an utterance leaves."""

    generation: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """All that was said has left; not sent after a CLEAR."""

    generation: int


@dataclass(frozen=True, slots=True)
class Overrun:
    """The queue was full and these samples were refused."""

    samples: int

    def encode(self) -> bytes:
        """As a frame to the backend."""
        message = f"the playout queue is full: {self.samples} samples were refused"
        return Event(events.error("playout_overrun", message)).encode()


Notice = Played | Mark | Cleared | Overrun | Started | Stopped


def encode_notice(notice: Notice) -> bytes | None:
    """The frame that tells the backend; None for what only the data channel is told."""
    return None if isinstance(notice, Started | Stopped) else notice.encode()


class _State(Enum):
    IDLE = "idle"
    GATHERING = "gathering"
    PLAYING = "playing"
    STARVED = "starved"
    SETTLING = "settling"


class Playout:
    """See the module's docstring. rate_out: Hz. lead_ms: audio gathered before an utterance.
    limit_ms: what the queue holds. rtp_ts_base: timestamp of the first slot of all."""

    def __init__(
        self,
        rate_out: int,
        lead_ms: int = 20,
        limit_ms: int = 30_000,
        rtp_ts_base: int = 0,
    ) -> None:
        self._lead_ms = lead_ms
        self._limit_ms = limit_ms
        self._rtp_ts_base = rtp_ts_base
        self._epoch_ns: int | None = None
        self._heard_lag_ns = 0
        self._state = _State.IDLE
        self._slot_ns = 0
        """The next slot; while IDLE the earliest that an utterance may start in."""
        self._due_ns: int | None = None
        self._gather_until_ns: int | None = None
        self._settle_left = 0
        self._marker = False
        self._speaking = False
        self._fade = b""
        self._fade_generation = 0
        self._notices: list[Notice] = []
        self._set_rate(rate_out)
        self._begin_generation(0)

    def _set_rate(self, rate_out: int) -> None:
        self.rate_out = rate_out
        self._bytes_per_ms = rate_out // 1000 * 2
        self._frame_bytes = FRAME_MS * self._bytes_per_ms
        self._silence = bytes(self._frame_bytes)

    def _begin_generation(self, generation: int) -> None:
        self.generation = generation
        self._queue = bytearray()
        self._ended = False
        self._pushed = 0  # samples of this generation, as are the next two
        self._sent = 0
        self._heard = 0
        self._unheard: deque[tuple[int, int]] = deque()  # when sent, _sent then
        self._marks: deque[tuple[int, str]] = deque()  # position in _pushed, name
        self._reported = 0
        self._reported_ns: int | None = None

    # --- from the backend ---

    def push(self, pcm: bytes, now_ns: int) -> int:
        """Queue any whole number of samples. Returns how many at the end found no room (an
        Overrun tells the backend). Raises BadPacket("backend_bad_frame")."""
        if len(pcm) & 1:
            raise BadPacket(_BAD_FRAME, f"{len(pcm)} bytes of PCM are half a sample over")
        room = self._limit_ms * self._bytes_per_ms - len(self._queue)
        refused = max(0, len(pcm) - room) // 2
        if refused:
            pcm = pcm[:room]
            self._note_overrun(refused)
        if pcm:
            self._queue += pcm
            self._pushed += len(pcm) // 2
            self._ended = False
            self._wake(now_ns)
        return refused

    def end(self, now_ns: int) -> None:
        """The utterance is complete: its last frame need not wait for more."""
        self._ended = True
        self._wake(now_ns)

    def mark(self, name: str, now_ns: int) -> None:
        """Give name back once all that was pushed so far has been heard. Raises
        BadPacket("backend_bad_frame") when MAX_MARKS are waiting."""
        if len(self._marks) >= MAX_MARKS:
            raise BadPacket(_BAD_FRAME, f"more than {MAX_MARKS} marks wait")
        self._marks.append((self._pushed, name))
        self._note_heard(now_ns)

    def clear(self, generation: int, now_ns: int) -> None:
        """Drop what is queued and fade out; what is pushed now belongs to generation."""
        self._note_heard(now_ns)
        self._notices.append(Cleared(self.generation, self._heard))
        self._notices.extend(Mark(name) for _, name in self._marks)
        if self._state is _State.STARVED:
            self._due_ns = now_ns  # what there is need not wait for more
        self._cut()
        self._begin_generation(generation)
        self._speaking = False
        self._note_played(now_ns)

    def restart(self, rate_out: int) -> None:
        """Another backend takes over: as new, but the RTP clock and its slots go on. Nothing is
        left to tell the old one."""
        self._notices = [n for n in self._notices if isinstance(n, Started | Stopped)]
        if self._speaking:
            self._speaking = False
            self._notices.append(Stopped(self.generation))
        self._cut()
        if rate_out != self.rate_out:
            self._set_rate(rate_out)
            self._fade = b""
        self._begin_generation(0)

    def set_heard_lag(self, lag_ns: int) -> None:
        """How long after a frame is sent it is heard."""
        self._heard_lag_ns = min(max(0, lag_ns), MAX_HEARD_LAG_NS)

    def refuse(self, samples: int) -> None:
        """Tell the backend that so many samples found no room on their way here."""
        self._note_overrun(samples)

    # --- time ---

    def next_timeout(self) -> int | None:
        """When handle_timer is due; None while nothing is to be said."""
        if self._unheard and self._state in (_State.IDLE, _State.GATHERING):
            # Frames tick no more; marks and the last PLAYED still wait for being heard.
            place = min(self._marks[0][0], self._sent) if self._marks else self._sent
            sent_ns = next(sent_ns for sent_ns, samples in self._unheard if samples >= place)
            heard_ns = sent_ns + self._heard_lag_ns
            return heard_ns if self._due_ns is None else min(heard_ns, self._due_ns)
        return self._due_ns

    def handle_timer(self, now_ns: int) -> list[OutgoingFrame]:
        """The frames that are due."""
        frames: list[OutgoingFrame] = []
        while self._due_ns is not None and self._due_ns <= now_ns:
            if len(frames) == MAX_CATCH_UP_FRAMES:
                self._begin_slots_anew(now_ns)
                break
            self._step(self._due_ns, now_ns, frames)
        self._note_heard(now_ns)
        return frames

    def poll_notices(self) -> list[Notice]:
        """What the backend and the client's data channel are to be told, in order."""
        notices, self._notices = self._notices, []
        return notices

    @property
    def queued_ms(self) -> int:
        """What waits to be sent."""
        return len(self._queue) // self._bytes_per_ms

    @property
    def room_ms(self) -> int:
        """What can be pushed now."""
        return self._limit_ms - -(-len(self._queue) // self._bytes_per_ms)

    # --- the states ---

    def _wake(self, now_ns: int) -> None:
        """Audio or END came: see what waits for it."""
        if self._state is _State.PLAYING:
            return
        if self._state is _State.STARVED:
            if self._ended or len(self._queue) >= self._frame_bytes:
                self._due_ns = now_ns
            return
        if not self._queue:
            return
        if self._gather_until_ns is None:
            self._gather_until_ns = now_ns + self._lead_ms * 1_000_000
        if self._state is not _State.SETTLING:
            self._state = _State.GATHERING
            start_ns = now_ns if self._has_lead() else self._gather_until_ns
            self._due_ns = max(start_ns, self._slot_ns)

    def _has_lead(self) -> bool:
        return self._ended or len(self._queue) >= self._lead_ms * self._bytes_per_ms

    def _step(self, due_ns: int, now_ns: int, frames: list[OutgoingFrame]) -> None:
        """One row of the table."""
        if self._state is _State.SETTLING:
            self._settle(due_ns, now_ns, frames)
        elif self._state is _State.STARVED:
            self._end_starvation(due_ns, now_ns, frames)
        else:
            if self._state is _State.GATHERING:
                self._slot_ns = due_ns
                self._start_utterance()
            self._play(due_ns, now_ns, frames)

    def _start_utterance(self) -> None:
        self._state = _State.PLAYING
        self._gather_until_ns = None
        self._marker = True
        if not self._speaking:
            self._speaking = True
            self._notices.append(Started(self.generation))

    def _play(self, due_ns: int, now_ns: int, frames: list[OutgoingFrame]) -> None:
        if len(self._queue) >= self._frame_bytes:
            self._send_queued(due_ns, now_ns, frames)
        elif self._ended:
            self._finish(due_ns, now_ns, frames)
        else:
            self._state = _State.STARVED
            self._due_ns = self._slot_ns + FRAME_NS

    def _end_starvation(self, due_ns: int, now_ns: int, frames: list[OutgoingFrame]) -> None:
        if len(self._queue) >= self._frame_bytes:
            self._state = _State.PLAYING
            self._send_queued(due_ns, now_ns, frames)
            return
        if not self._queue and due_ns >= self._slot_ns + FRAME_NS:
            self._slot_ns += FRAME_NS  # the client has filled this slot by itself
        self._finish(due_ns, now_ns, frames)

    def _finish(self, deadline_ns: int, now_ns: int, frames: list[OutgoingFrame]) -> None:
        """Send what is left, padded; the utterance is over, or the backend has stalled."""
        self._state = _State.SETTLING
        self._settle_left = SETTLE_FRAMES
        self._due_ns = deadline_ns
        if self._queue:
            self._send_queued(deadline_ns, now_ns, frames)
        if self._ended:
            self._stop_speaking()

    def _settle(self, due_ns: int, now_ns: int, frames: list[OutgoingFrame]) -> None:
        if self._fade:
            frame, self._fade = self._fade, b""
            self._send(frame, due_ns, self._fade_generation, frames)
            return
        gather_until_ns = self._gather_until_ns
        if gather_until_ns is not None and (self._has_lead() or gather_until_ns <= self._slot_ns):
            self._start_utterance()
            self._play(due_ns, now_ns, frames)
            return
        self._send(self._silence, due_ns, self.generation, frames)
        self._settle_left -= 1
        if self._settle_left > 0:
            return
        if gather_until_ns is not None:
            self._state = _State.GATHERING
            self._due_ns = max(self._slot_ns, gather_until_ns)
        else:
            self._state = _State.IDLE
            self._due_ns = None
            self._stop_speaking()

    def _cut(self) -> None:
        """Leave off speaking, with a fade over the next samples if any are flowing."""
        self._gather_until_ns = None
        if self._state in (_State.PLAYING, _State.STARVED):
            self._fade = _fade_out(self._queue, FADE_MS * self._bytes_per_ms, self._frame_bytes)
            self._fade_generation = self.generation
            self._state = _State.SETTLING
            self._settle_left = SETTLE_FRAMES
        elif self._state is _State.GATHERING:
            self._state = _State.IDLE
            self._due_ns = None

    def _begin_slots_anew(self, now_ns: int) -> None:
        self._slot_ns = self._due_ns = now_ns + FRAME_NS
        self._marker = True
        if self._state is _State.STARVED:
            self._state = _State.PLAYING

    # --- frames and notices ---

    def _send_queued(self, deadline_ns: int, now_ns: int, frames: list[OutgoingFrame]) -> None:
        """Send the next frame of the queue, or what there is of it and silence."""
        pcm = bytes(self._queue[: self._frame_bytes])
        del self._queue[: self._frame_bytes]
        self._sent += len(pcm) // 2
        self._unheard.append((now_ns, self._sent))
        if len(pcm) < self._frame_bytes:
            pcm += bytes(self._frame_bytes - len(pcm))
        self._send(pcm, deadline_ns, self.generation, frames)

    def _send(
        self, pcm: bytes, deadline_ns: int, generation: int, frames: list[OutgoingFrame]
    ) -> None:
        """Fill the slot and move to the next."""
        if self._epoch_ns is None:
            self._epoch_ns = self._slot_ns
        elapsed = (self._slot_ns - self._epoch_ns) * _CLOCK_KHZ // 1_000_000
        rtp_ts = (self._rtp_ts_base + elapsed) & 0xFFFFFFFF
        frames.append(OutgoingFrame(pcm, rtp_ts, self._marker, deadline_ns, generation))
        self._marker = False
        self._slot_ns += FRAME_NS
        self._due_ns = self._slot_ns

    def _stop_speaking(self) -> None:
        if self._speaking:
            self._speaking = False
            self._notices.append(Stopped(self.generation))

    def _note_heard(self, now_ns: int) -> None:
        """Move on what has been heard, and tell it."""
        horizon_ns = now_ns - self._heard_lag_ns
        while self._unheard and self._unheard[0][0] <= horizon_ns:
            _, self._heard = self._unheard.popleft()
        while self._marks and self._marks[0][0] <= self._heard:
            self._notices.append(Mark(self._marks.popleft()[1]))
        if self._heard == self._reported:
            return
        silent = self._state not in (_State.PLAYING, _State.STARVED)
        # Half a frame of tolerance, so that a timer's jitter does not make it 120 ms.
        if (
            self._reported_ns is None
            or now_ns - self._reported_ns >= PLAYED_INTERVAL_NS - FRAME_NS // 2
            or (silent and not self._unheard)
        ):
            self._note_played(now_ns)

    def _note_played(self, now_ns: int) -> None:
        self._reported = self._heard
        self._reported_ns = now_ns
        self._notices.append(Played(self.generation, self._heard, self.queued_ms, self.room_ms))

    def _note_overrun(self, samples: int) -> None:
        """One notice for refusals in a row, however many."""
        last = self._notices[-1] if self._notices else None
        if isinstance(last, Overrun):
            samples += last.samples
            self._notices.pop()
        self._notices.append(Overrun(samples))


def _fade_out(pcm: bytearray, fade_bytes: int, frame_bytes: int) -> bytes:
    """A frame that takes the head of pcm (s16le) down to nothing over at most fade_bytes, along
    half a cosine; empty for no pcm."""
    if not pcm:
        return b""
    samples = array("h", bytes(pcm[:fade_bytes]))
    for i, sample in enumerate(samples):
        samples[i] = int(sample * (0.5 + 0.5 * math.cos(math.pi * (i + 1) / len(samples))))
    faded = samples.tobytes()
    return faded + bytes(frame_bytes - len(faded))
