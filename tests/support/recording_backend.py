"""A backend inside the test: it keeps every frame it gets and says what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.proto.backend_frame import FrameReader, FrameType, Ready, Start, encode_frame


@dataclass
class RecordedCall:
    """One connection from the edge: the backend's ears and mouth."""

    writer: asyncio.StreamWriter
    start: Start | None = None
    pcm: bytearray = field(default_factory=bytearray)
    """All AUDIO so far, s16le at the backend's rate_in."""
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(arrival, CLOCK_MONOTONIC ns; type; payload) of every frame but AUDIO."""
    closed: bool = False

    def send(self, frame: bytes) -> None:
        """Any frame, encoded."""
        self.writer.write(frame)

    def of_type(self, frame_type: FrameType) -> list[tuple[int, bytes]]:
        """(arrival ns, payload) of every frame of one type, in order."""
        return [(at, payload) for at, kind, payload in self.frames if kind == frame_type]


class RecordingBackend:
    """Listens on a Unix socket; each connection becomes a RecordedCall, newest last."""

    def __init__(self, rate_in: int = 16000, rate_out: int = 24000) -> None:
        self.ready = Ready(rate_in, rate_out)
        self.calls: list[RecordedCall] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listen(self, path: Path) -> AsyncIterator[RecordingBackend]:
        """Listens for the length of the block; then every connection is closed."""
        server = await asyncio.start_unix_server(self._serve, str(path))
        try:
            yield self
        finally:
            server.close()
            for call in self.calls:
                call.writer.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        call = RecordedCall(writer)
        frames = FrameReader()
        try:
            while data := await reader.read(65536):
                now_ns = time.monotonic_ns()
                for kind, payload in frames.feed(data):
                    self._take(call, kind, payload, now_ns)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the edge is gone, or the test is over: either way nothing more is heard
        finally:
            call.closed = True
            writer.close()
            self._tasks.discard(task)

    def _take(self, call: RecordedCall, kind: int, payload: bytes, now_ns: int) -> None:
        if kind == FrameType.AUDIO:
            call.pcm += payload
            return
        call.frames.append((now_ns, kind, payload))
        if kind == FrameType.START:
            call.start = Start.parse(payload)
            self.calls.append(call)
            call.send(self.ready.encode())


def audio_frame(pcm: bytes) -> bytes:
    """An AUDIO frame for RecordedCall.send."""
    return encode_frame(FrameType.AUDIO, pcm)
