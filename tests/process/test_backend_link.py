"""The edge's end of the Unix socket against backends that are absent, slow, dead or mad."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dataplane.proto.backend_frame import (
    AudioFrame,
    Concealed,
    ConcealedHow,
    Event,
    FrameReader,
    FrameType,
    Ready,
    Stop,
    parse_payload,
)
from dataplane.shm.enums import BackendState
from dataplane.workers.backend_link import BackendLink

RATE = 16000
FRAME_SAMPLES = 320
START = Event(b'{"this":"stands for START"}').encode()


class Recorder:
    """The call's side: writes down what the link reports."""

    def __init__(self) -> None:
        self.states: list[BackendState] = []
        self.details: list[str] = []
        self.frames: list[tuple[int, bytes]] = []
        self.bad_frames = 0
        self.dropped = 0
        self.link: BackendLink | None = None

    def backend_frame(self, frame_type: int, payload: bytes) -> None:
        self.frames.append((frame_type, payload))
        frame = parse_payload(frame_type, payload)
        if isinstance(frame, Ready):
            assert self.link is not None
            self.link.ready(frame.rate_in)

    def backend_bad_frame(self) -> None:
        self.bad_frames += 1

    def backend_state(self, state: BackendState, detail: str) -> None:
        self.states.append(state)
        self.details.append(detail)

    def audio_dropped(self, frames: int) -> None:
        self.dropped += frames


async def until(condition: Callable[[], object], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    return listener


async def accept(listener: socket.socket) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    connection.setblocking(False)
    return connection


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[tuple[Recorder, BackendLink, Path]]:
    recorder = Recorder()
    path = tmp_path / "backend.sock"
    link = BackendLink(str(path), START, recorder, recorder.audio_dropped)
    recorder.link = link
    yield recorder, link, path
    link.close()


Link = tuple[Recorder, BackendLink, Path]


async def ready_backend(recorder: Recorder, link: BackendLink, path: Path) -> socket.socket:
    listener = listen(path)
    link.open()
    connection = await accept(listener)
    listener.close()
    await asyncio.get_running_loop().sock_sendall(connection, Ready(RATE, RATE).encode())
    await until(lambda: link.state is BackendState.READY)
    return connection


async def read_frames(connection: socket.socket, seconds: float = 0.3) -> list[object]:
    """Everything that comes until it is quiet."""
    reader, frames = FrameReader(), []
    while True:
        try:
            async with asyncio.timeout(seconds):
                data = await asyncio.get_running_loop().sock_recv(connection, 65536)
        except TimeoutError:
            return frames
        if not data:
            return frames
        frames += [parse_payload(t, p) for t, p in reader.feed(data)]


async def test_it_waits_for_a_backend_that_is_not_there_yet(link: Link) -> None:
    recorder, backend, path = link
    backend.open()
    assert recorder.states[-1] is BackendState.UNAVAILABLE
    assert str(path) in recorder.details[-1]
    listener = listen(path)
    connection = await accept(listener)
    assert (await read_frames(connection))[0] == Event(b'{"this":"stands for START"}')
    listener.close()
    connection.close()


async def test_a_backend_that_dies_is_connected_again(link: Link) -> None:
    recorder, _, path = link
    connection = await ready_backend(*link)
    connection.close()
    await until(lambda: BackendState.LOST in recorder.states)
    path.unlink()
    connection = await ready_backend(*link)
    assert recorder.states.count(BackendState.READY) == 2
    connection.close()


async def test_frames_arrive_whole_and_in_order(link: Link) -> None:
    _, backend, _ = link
    connection = await ready_backend(*link)
    pcm = bytes(2 * FRAME_SAMPLES)
    for i in range(20):
        backend.send_audio(AudioFrame(pcm).encode(), i * FRAME_SAMPLES, FRAME_SAMPLES)
        backend.send(Event(b"%d" % i).encode())
    frames = (await read_frames(connection))[1:]
    assert frames[::2] == [AudioFrame(pcm)] * 20
    assert frames[1::2] == [Event(b"%d" % i) for i in range(20)]
    connection.close()


async def test_a_stalled_backend_loses_its_oldest_audio_and_is_told(link: Link) -> None:
    recorder, backend, _ = link
    connection = await ready_backend(*link)
    total = 1000  # twenty seconds that nobody reads
    for i in range(total):
        pcm = i.to_bytes(2, "little") * FRAME_SAMPLES
        backend.send_audio(AudioFrame(pcm).encode(), i * FRAME_SAMPLES, FRAME_SAMPLES)
    backend.send(Event(b'"after"').encode())
    assert recorder.dropped > 800
    frames = (await read_frames(connection))[1:]
    assert frames[-1] == Event(b'"after"')
    # Every sample is accounted for, once, in order: as audio or as dropped.
    position = 0
    for frame in frames[:-1]:
        if isinstance(frame, Concealed):
            assert frame.how is ConcealedHow.DROPPED
            assert frame.first_sample == position
            position += frame.samples
        else:
            assert isinstance(frame, AudioFrame)
            assert frame.pcm[:2] == (position // FRAME_SAMPLES).to_bytes(2, "little")
            position += len(frame.pcm) // 2
    assert position == total * FRAME_SAMPLES
    # The newest second is there, the oldest that had not left is gone.
    assert isinstance(frames[-2], AudioFrame)
    connection.close()


async def test_what_is_no_frame_costs_the_connection_not_the_call(link: Link) -> None:
    recorder, _, path = link
    connection = await ready_backend(*link)
    await asyncio.get_running_loop().sock_sendall(connection, b"\x10\xff\xff\xff" + bytes(64))
    await until(lambda: BackendState.REFUSED in recorder.states)
    assert recorder.bad_frames == 1
    connection.close()
    path.unlink()
    connection = await ready_backend(*link)
    connection.close()


async def test_stop_is_said_at_the_end(link: Link) -> None:
    _, backend, _ = link
    connection = await ready_backend(*link)
    backend.close(Stop("hangup").encode())
    frames = await read_frames(connection)
    assert frames[-1] == Stop("hangup")
    connection.close()


async def test_half_a_minute_of_speech_at_once_is_read_at_once(link: Link) -> None:
    recorder, _, _ = link
    connection = await ready_backend(*link)
    burst = AudioFrame(bytes(64000)).encode() * 15
    await asyncio.get_running_loop().sock_sendall(connection, burst)
    await until(lambda: sum(t == FrameType.AUDIO for t, _ in recorder.frames) == 15)
    connection.close()
