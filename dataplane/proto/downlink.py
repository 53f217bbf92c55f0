"""Towards the client: playout clock, Opus encoder, RTP.

A backend that speaks before the client is connected is heard in full: what it
says waits, in order, until start().
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

from dataplane.proto.errors import BadPacket
from dataplane.proto.opus import OpusEncoder
from dataplane.proto.playout import MAX_MARKS, Playout, encode_notice
from dataplane.proto.rtp import RtpPacket, encode_rtp

WAITING_LIMIT_FRAMES = 3000
"""Backend frames that wait for the client: a minute of 20 ms frames."""
WAITING_LIMIT_BYTES = 60 * 48_000 * 2
"""PCM among them: a minute, too. The playout then takes what it has room for."""


class OutgoingPacket(NamedTuple):
    """An RTP packet before protection. payload_bytes: without the header."""

    packet: bytes
    payload_bytes: int
    rtp_ts: int


class Downlink:
    """One outgoing stream. Times are CLOCK_MONOTONIC nanoseconds."""

    def __init__(
        self, *, payload_type: int, ssrc: int, lead_ms: int, complexity: int, bitrate: int
    ) -> None:
        self._payload_type = payload_type
        self._ssrc = ssrc
        self._lead_ms = lead_ms
        self._complexity = complexity
        self._bitrate = bitrate
        self._playout: Playout | None = None
        self._encoder: OpusEncoder | None = None
        self._started = False
        self._waiting: list[Callable[[Playout, int], object]] = []
        self._waiting_bytes = 0
        self._waiting_marks = 0
        self._heard_lag_ns = 0
        self._seq = secrets.randbits(16)  # RFC 3550 5.1: it starts at random
        self.frame_lateness_ns: list[int] = []
        """How late each frame since the last look was sent; for the worker to drain."""

    # --- life ---

    def start(self, now_ns: int) -> None:
        """The client is connected: the clock may run, and what waited is queued."""
        self._started = True
        self._flush(now_ns)

    def set_rate(self, rate_out: int, now_ns: int) -> None:
        """A backend is ready to speak at rate_out (Hz). What its predecessor had queued is
        faded out."""
        if self._encoder is None or self._encoder.rate != rate_out:
            self._encoder = OpusEncoder(
                rate_out, complexity=self._complexity, bitrate=self._bitrate
            )
        self._take_waiting()
        if self._playout is None:
            # RFC 3550 5.1: timestamps start at random.
            self._playout = Playout(
                rate_out, lead_ms=self._lead_ms, rtp_ts_base=secrets.randbits(32)
            )
            self._playout.set_heard_lag(self._heard_lag_ns)
        else:
            self._playout.restart(rate_out)

    # --- from the backend; each may raise BadPacket("backend_bad_frame") ---

    def push(self, pcm: bytes, now_ns: int) -> None:
        """Audio, s16le mono at the rate of set_rate."""
        if self._playout is not None and not self._started:
            if self._waiting_bytes + len(pcm) > WAITING_LIMIT_BYTES:
                self._playout.refuse(len(pcm) // 2)
                return
            self._waiting_bytes += len(pcm)
        self._do(lambda playout, at_ns: playout.push(pcm, at_ns), now_ns)

    def end(self, now_ns: int) -> None:
        """The utterance is complete."""
        self._do(lambda playout, at_ns: playout.end(at_ns), now_ns)

    def mark(self, name: str, now_ns: int) -> None:
        """Say when all so far has been heard."""
        if not self._started:
            if self._waiting_marks >= MAX_MARKS:
                raise BadPacket("backend_bad_frame", f"more than {MAX_MARKS} marks wait")
            self._waiting_marks += 1
        self._do(lambda playout, at_ns: playout.mark(name, at_ns), now_ns)

    def clear(self, generation: int, now_ns: int) -> None:
        """Stop; what follows belongs to generation."""
        self._do(lambda playout, at_ns: playout.clear(generation, at_ns), now_ns)

    def _do(self, action: Callable[[Playout, int], object], now_ns: int) -> None:
        if self._started and self._playout is not None:
            action(self._playout, now_ns)
        elif len(self._waiting) < WAITING_LIMIT_FRAMES:
            self._waiting.append(action)
        else:
            raise BadPacket("backend_bad_frame", "too much is waiting for the client")

    def _flush(self, now_ns: int) -> None:
        for action in self._take_waiting():
            self._do(action, now_ns)

    def _take_waiting(self) -> list[Callable[[Playout, int], object]]:
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = self._waiting_marks = 0
        return waiting

    # --- time ---

    def set_heard_lag(self, lag_ns: int) -> None:
        """How long after a frame is sent it is heard."""
        self._heard_lag_ns = lag_ns
        if self._playout is not None:
            self._playout.set_heard_lag(lag_ns)

    def next_timeout(self) -> int | None:
        """When handle_timer is due."""
        return self._playout.next_timeout() if self._playout is not None else None

    def handle_timer(self, now_ns: int) -> list[OutgoingPacket]:
        """The packets that are due."""
        playout, encoder = self._playout, self._encoder
        if playout is None or encoder is None:
            return []
        packets = []
        for frame in playout.handle_timer(now_ns):
            payload = encoder.encode(frame.pcm)
            header = RtpPacket(
                self._payload_type, frame.marker, self._seq, frame.rtp_ts, self._ssrc, payload
            )
            self._seq = (self._seq + 1) & 0xFFFF
            self.frame_lateness_ns.append(now_ns - frame.deadline_ns)
            packets.append(OutgoingPacket(encode_rtp(header), len(payload), frame.rtp_ts))
        return packets

    # --- to the backend ---

    def poll_backend_frames(self) -> list[bytes]:
        """Encoded PLAYED, MARK, CLEARED and error frames, in order."""
        if self._playout is None:
            return []
        encoded = (encode_notice(notice) for notice in self._playout.poll_notices())
        return [frame for frame in encoded if frame is not None]

    @property
    def queued_ms(self) -> int:
        """What waits to be sent."""
        return self._playout.queued_ms if self._playout is not None else 0
