"""The edge's side of the backend protocol, to drive a backend with, and a backend's process.

It shares no code with the edge: the bytes here are written from
docs/backend-protocol.md, so that a mistake in one is not repeated in the other.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

START, READY, STOP = 0x01, 0x02, 0x0F
AUDIO, CONCEALED, EVENT, DTMF, SPEECH = 0x10, 0x11, 0x20, 0x21, 0x22
PLAYED, MARK, CLEAR, CLEARED, END = 0x30, 0x31, 0x32, 0x33, 0x34
FROM_BACKEND = {READY, STOP, AUDIO, EVENT, MARK, CLEAR, END}

RATES = (8000, 12000, 16000, 24000, 48000)
DEADLINE_S = 30.0
"""For what should take milliseconds: the machine may be busy."""


def encode(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", kind << 24 | len(payload)) + payload


def encode_json(kind: int, value: object) -> bytes:
    return encode(kind, json.dumps(value).encode())


def encode_start(session_id: str, **changes: object) -> bytes:
    start: dict[str, object] = {
        "version": 1,
        "session_id": session_id,
        "backend": "test",
        "rates": RATES,
        "formats": ["pcm_s16le"],
        "options": {},
        "client": {"address": "192.0.2.1:40000"},
        "of_a_later_version": [1, 2, 3],
    }
    return encode_json(START, {**start, **changes})


class Received(NamedTuple):
    kind: int
    payload: bytes

    def json(self) -> Any:
        return json.loads(self.payload)


class EdgeSide:
    """One connection, as the edge makes it. A thread reads all the time, as the edge does."""

    def __init__(self, path: Path, session_id: str = "rtc_test") -> None:
        self.session_id = session_id
        self.frames: list[Received] = []
        """Everything the backend sent, in order."""
        self.closed = False
        """The backend closed the connection."""
        self.rate_in = self.rate_out = 0
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> EdgeSide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.vanish()

    def _read(self) -> None:
        buffer = b""
        try:
            while data := self._recv():
                buffer += data
                while len(buffer) >= 4:
                    (word,) = struct.unpack_from(">I", buffer)
                    end = 4 + (word & 0xFFFFFF)
                    if len(buffer) < end:
                        break
                    with self._changed:
                        self.frames.append(Received(word >> 24, buffer[4:end]))
                        self._changed.notify_all()
                    buffer = buffer[end:]
        except OSError:
            pass
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _recv(self) -> bytes:
        while True:
            try:
                return self._socket.recv(65536)
            except TimeoutError:
                continue

    # --- out ---

    def send_bytes(self, data: bytes, chunk_bytes: int | None = None) -> None:
        """Send raw bytes, in chunks of a size if it is given."""
        step = chunk_bytes or max(1, len(data))
        for at in range(0, len(data), step):
            self._socket.sendall(data[at : at + step])

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.send_bytes(encode(kind, payload))

    def start(self, **changes: object) -> None:
        """Send START, await READY, note its rates."""
        self.send_bytes(encode_start(self.session_id, **changes))
        self.await_ready()

    def await_ready(self) -> None:
        ready = self.expect(READY).json()
        self.rate_in, self.rate_out = ready["rate_in"], ready["rate_out"]

    def audio(self, pcm: bytes) -> None:
        self.send(AUDIO, pcm)

    def speak(self, pcm: bytes) -> None:
        """Send PCM as the edge does, in frames of 20 ms, but not in time."""
        step = self.rate_in // 50 * 2
        self.send_bytes(
            b"".join(encode(AUDIO, pcm[at : at + step]) for at in range(0, len(pcm), step))
        )

    def event(self, value: object) -> None:
        self.send_bytes(encode_json(EVENT, value))

    def played(self, generation: int, samples: int, queued_ms: int, room_ms: int) -> None:
        self.send(PLAYED, struct.pack(">IQII", generation, samples, queued_ms, room_ms))

    def cleared(self, old_generation: int, samples: int) -> None:
        self.send(CLEARED, struct.pack(">IQ", old_generation, samples))

    def mark(self, name: str) -> None:
        self.send(MARK, name.encode())

    def stop(self, reason: str = "hangup") -> None:
        self.send_bytes(encode_json(STOP, {"reason": reason}))

    def vanish(self) -> None:
        """Close without a word."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reading thread
        self._thread.join()
        self._socket.close()

    # --- in ---

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until condition holds; it is looked at when anything comes."""
        with self._changed:
            ok = self._changed.wait_for(lambda: condition() or self.closed, DEADLINE_S)
            if not (ok and condition()):
                seen = [f"0x{f.kind:02x}({len(f.payload)})" for f in self.frames[-8:]]
                ending = "it closed the connection" if self.closed else "nothing came"
                raise AssertionError(f"no {what}: {ending}; the last frames were {seen}")

    def expect(self, kind: int, skip: int = 0) -> Received:
        """The frame of that type that follows `skip` others of it."""
        self.wait(lambda: len(self.of(kind)) > skip, f"frame 0x{kind:02x} number {skip}")
        return self.of(kind)[skip]

    def expect_event(self, event_type: str, skip: int = 0) -> dict[str, Any]:
        """The event of that "type" that follows `skip` others of it."""

        def found() -> list[dict[str, Any]]:
            events = [frame.json() for frame in self.of(EVENT)]
            return [e for e in events if isinstance(e, dict) and e.get("type") == event_type]

        self.wait(lambda: len(found()) > skip, f"event {event_type} number {skip}")
        return found()[skip]

    def expect_pcm(self, total_bytes: int) -> bytes:
        """All AUDIO so far, once there are at least so many bytes of it."""
        self.wait(lambda: len(self.pcm()) >= total_bytes, f"{total_bytes} bytes of audio")
        return self.pcm()

    def expect_close(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.closed, DEADLINE_S), "it stays connected"

    def of(self, kind: int) -> list[Received]:
        return [frame for frame in list(self.frames) if frame.kind == kind]

    def pcm(self, since: int = 0) -> bytes:
        """All AUDIO among the frames from index `since` on."""
        return b"".join(f.payload for f in list(self.frames)[since:] if f.kind == AUDIO)


class BackendProcess:
    """A backend as a real process; the socket's path is its last argument."""

    def __init__(self, command: Sequence[str], path: Path) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, str(path)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def await_listening(self) -> BackendProcess:
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert self.process.poll() is None, f"it exited:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"it does not listen:\n{self.log.read_text()}"
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.path))
            except OSError:
                return False
            return True

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> BackendProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
