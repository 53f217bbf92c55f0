"""The Unix socket to one call's backend: connect, frame, reconnect.

A backend may be slow, absent or dead; this call alone must feel it. So every
operation is non-blocking, what waits for a stalled backend is bounded in time
(the oldest audio goes first, and the backend is told which samples those
were), and a lost connection is tried again for as long as the call lasts.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dataplane.proto.backend_frame import Concealed, ConcealedHow, FrameReader
from dataplane.proto.errors import BadPacket
from dataplane.shm.enums import BackendState

READ_BYTES = 65536
FRAMES_PER_TURN = 64
"""Read and handled per wake-up: one call's burst must not delay the others."""

SEND_BUFFER_BYTES = 65536
"""Kernel buffer towards the backend: about half a second of PCM at 48 kHz."""

AUDIO_LIMIT_MS = 1000
"""Audio kept for a backend that does not read."""

CONTROL_LIMIT = 1024
CONTROL_LIMIT_BYTES = 1 << 20
"""Frames other than audio kept for a backend that does not read."""

READY_TIMEOUT_S = 5.0
RETRY_S = (0.1, 0.25, 0.5, 1.0)
"""Pauses before the next attempts; the last one repeats."""


class BackendHandler(Protocol):
    """What the call does with what its backend says."""

    def backend_frame(self, frame_type: int, payload: bytes) -> None: ...

    def backend_bad_frame(self) -> None: ...

    def backend_state(self, state: BackendState, detail: str) -> None: ...


@dataclass
class _Entry:
    frame: bytes
    first_sample: int = 0
    samples: int = 0
    """Above 0: audio, which may be dropped."""
    dropped: int = 0
    """Above 0: the note that stands for so many dropped samples."""


class BackendLink:
    """One call's connection, remade until close().

    start_frame: the encoded START, sent first on every connection.
    on_audio_dropped: called with the number of AUDIO frames dropped.
    """

    def __init__(
        self,
        path: str,
        start_frame: bytes,
        handler: BackendHandler,
        on_audio_dropped: Callable[[int], None],
    ) -> None:
        self._path = path
        self._start_frame = start_frame
        self._handler = handler
        self._on_audio_dropped = on_audio_dropped
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._queue: deque[_Entry] = deque()
        self._head_sent_bytes = 0
        self._queued_samples = 0
        self._queued_control = 0
        self._queued_control_bytes = 0
        self._unhandled: deque[tuple[int, bytes]] = deque()
        self._turn: asyncio.Handle | None = None
        self._audio_limit_samples = 0
        self._writing = False
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._attempt = 0
        self._closed = False
        self.state = BackendState.NONE

    # --- life ---

    def open(self) -> None:
        """Connect now; on failure say so and try again later."""
        if self._closed:
            return
        self._set_state(BackendState.CONNECTING, "")
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self._retry(BackendState.UNAVAILABLE, f"no socket: {error.strerror or error}")
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            # A Unix socket connects at once or not at all.
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            reason = error.strerror or str(error)
            self._retry(BackendState.UNAVAILABLE, f"nobody listens on {self._path}: {reason}")
            return
        self._socket = connection
        self._reader = FrameReader()
        self._watch_readable(True)
        self._set_state(BackendState.STARTED, "")
        self._timer = self._loop.call_later(READY_TIMEOUT_S, self._ready_timed_out)
        self._enqueue(_Entry(self._start_frame))

    def ready(self, rate_in: int) -> None:
        """The backend's READY was accepted: audio at rate_in samples a second may follow."""
        self._cancel_timer()
        self._attempt = 0
        self._audio_limit_samples = rate_in * AUDIO_LIMIT_MS // 1000
        self._set_state(BackendState.READY, "")

    def refuse(self, detail: str) -> None:
        """The backend answered what we cannot serve; drop the connection, try again later."""
        self._disconnect()
        self._retry(BackendState.REFUSED, detail)

    def close(self, last_frame: bytes = b"") -> None:
        """Say last_frame if the socket takes it at once, and end."""
        if self._closed:
            return
        self._closed = True
        if self._socket is not None and last_frame:
            self._enqueue(_Entry(last_frame))
        self._disconnect()

    # --- out ---

    def send(self, frame: bytes) -> None:
        """Queue a frame that must not be dropped for audio's sake."""
        if (
            self._socket is not None
            and self._queued_control < CONTROL_LIMIT
            and self._queued_control_bytes < CONTROL_LIMIT_BYTES
        ):
            self._enqueue(_Entry(frame))

    def send_audio(self, frame: bytes, first_sample: int, samples: int) -> None:
        """Queue an AUDIO frame of so many samples; the oldest give way when too many wait."""
        if self._socket is None:
            return
        self._enqueue(_Entry(frame, first_sample, samples))
        while self._queued_samples > self._audio_limit_samples:
            if not self._drop_oldest():
                break

    def _enqueue(self, entry: _Entry) -> None:
        self._queue.append(entry)
        if entry.samples:
            self._queued_samples += entry.samples
        else:
            self._queued_control += 1
            self._queued_control_bytes += len(entry.frame)
        if not self._writing:
            self._write()

    def _drop_oldest(self) -> bool:
        """Turn the oldest audio that has not begun to leave into a note of its loss."""
        first = 1 if self._head_sent_bytes else 0
        note: _Entry | None = None
        for index in range(first, len(self._queue)):
            entry = self._queue[index]
            if not entry.samples:
                note = entry if entry.dropped else None
                continue
            self._queued_samples -= entry.samples
            self._on_audio_dropped(1)
            if note is not None:
                note.dropped += entry.samples
                del self._queue[index]
            else:
                note = _Entry(b"", entry.first_sample, dropped=entry.samples)
                self._queue[index] = note
                self._queued_control += 1
            note.frame = Concealed(note.first_sample, note.dropped, ConcealedHow.DROPPED).encode()
            return True
        return False

    def _write(self) -> None:
        connection = self._socket
        while self._queue and connection is not None:
            entry = self._queue[0]
            try:
                sent = connection.send(memoryview(entry.frame)[self._head_sent_bytes :])
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(error.strerror or str(error))
                return
            self._head_sent_bytes += sent
            if self._head_sent_bytes < len(entry.frame):
                break
            self._queue.popleft()
            self._head_sent_bytes = 0
            if entry.samples:
                self._queued_samples -= entry.samples
            else:
                self._queued_control -= 1
                if not entry.dropped:
                    self._queued_control_bytes -= len(entry.frame)
        self._watch_writable(bool(self._queue))

    def _watch_writable(self, wanted: bool) -> None:
        if wanted == self._writing or self._socket is None:
            return
        self._writing = wanted
        if wanted:
            self._loop.add_writer(self._socket.fileno(), self._write)
        else:
            self._loop.remove_writer(self._socket.fileno())

    # --- in ---

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        if not data:
            self._lost("it closed the connection")
            return
        try:
            self._unhandled.extend(self._reader.feed(data))
        except BadPacket as bad:
            self._bad_frame(bad)
        else:
            self._handle_frames()

    def _handle_frames(self) -> None:
        """Some frames now, and if there are more the rest in turns of their own; meanwhile
        nothing is read."""
        self._turn = None
        connection = self._socket
        try:
            for _ in range(min(len(self._unhandled), FRAMES_PER_TURN)):
                self._handler.backend_frame(*self._unhandled.popleft())
                if self._socket is not connection:
                    return
        except BadPacket as bad:
            self._bad_frame(bad)
            return
        self._watch_readable(not self._unhandled)
        if self._unhandled:
            self._turn = self._loop.call_soon(self._handle_frames)

    def _watch_readable(self, wanted: bool) -> None:
        if wanted == self._reading or self._socket is None:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._socket.fileno(), self._readable)
        else:
            self._loop.remove_reader(self._socket.fileno())

    def _bad_frame(self, bad: BadPacket) -> None:
        self._handler.backend_bad_frame()
        self.refuse(f"it sent what is no frame: {bad.detail}")

    # --- failure ---

    def _lost(self, reason: str) -> None:
        self._disconnect()
        self._retry(BackendState.LOST, f"lost the backend at {self._path}: {reason}")

    def _ready_timed_out(self) -> None:
        self.refuse(f"the backend at {self._path} did not answer START with READY")

    def _retry(self, state: BackendState, detail: str) -> None:
        if self._closed:
            return
        self._cancel_timer()
        pause = RETRY_S[min(self._attempt, len(RETRY_S) - 1)]
        self._attempt += 1
        self._timer = self._loop.call_later(pause, self.open)
        self._set_state(state, detail)

    def _disconnect(self) -> None:
        self._cancel_timer()
        connection, self._socket = self._socket, None
        if connection is not None:
            self._loop.remove_reader(connection.fileno())
            self._loop.remove_writer(connection.fileno())
            connection.close()
        self._writing = self._reading = False
        self._queue.clear()
        self._head_sent_bytes = self._queued_samples = 0
        self._queued_control = self._queued_control_bytes = 0
        self._unhandled.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_state(self, state: BackendState, detail: str) -> None:
        self.state = state
        self._handler.backend_state(state, detail)
