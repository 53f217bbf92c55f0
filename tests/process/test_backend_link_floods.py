"""The edge's end of the Unix socket when there is too much: frames, bytes, descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dataplane.proto.backend_frame import End, Event, Ready
from dataplane.shm.enums import BackendState
from dataplane.workers.backend_link import BackendLink

START = Event(b'{"this":"stands for START"}').encode()


class Recorder:
    """The call's side: counts."""

    def __init__(self) -> None:
        self.states: list[BackendState] = []
        self.frames = 0

    def backend_frame(self, frame_type: int, payload: bytes) -> None:
        self.frames += 1

    def backend_bad_frame(self) -> None:
        raise AssertionError

    def backend_state(self, state: BackendState, detail: str) -> None:
        self.states.append(state)


Link = tuple[Recorder, BackendLink, socket.socket]


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    recorder = Recorder()
    path = tmp_path / "backend.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        link = BackendLink(str(path), START, recorder, lambda _: None)
        yield recorder, link, listener
        link.close()


def connected(link: BackendLink, listener: socket.socket) -> socket.socket:
    link.open()
    connection, _ = listener.accept()
    connection.setblocking(False)
    link.ready(16000)
    return connection


async def connecting(recorder: Recorder) -> None:
    """Until START is sent again."""
    async with asyncio.timeout(5):
        while recorder.states[-1] is not BackendState.STARTED:
            await asyncio.sleep(0.005)


async def test_a_flood_of_tiny_frames_leaves_turns_to_others(link: Link) -> None:
    recorder, edge, listener = link
    with connected(edge, listener) as backend:
        frames = 10_000
        sent = backend.send(End().encode() * frames) // 4
        assert sent > 5000
        most = 0
        async with asyncio.timeout(20):
            while recorder.frames < sent:
                before = recorder.frames
                await asyncio.sleep(0)
                most = max(most, recorder.frames - before)
        assert most <= 256
        backend.send(End().encode())  # and reading goes on afterwards
        async with asyncio.timeout(5):
            while recorder.frames <= sent:
                await asyncio.sleep(0.001)


async def test_what_is_left_of_a_flood_is_not_its_successors(link: Link) -> None:
    recorder, edge, listener = link
    with connected(edge, listener) as backend:
        backend.send(End().encode() * 5000)
        while not recorder.frames:
            await asyncio.sleep(0)
        edge.refuse("enough")
        frames = recorder.frames
        await connecting(recorder)
        await asyncio.sleep(0.05)
        assert recorder.frames == frames
        with listener.accept()[0] as successor:
            successor.send(Ready(8000, 8000).encode())
            async with asyncio.timeout(5):
                while recorder.frames == frames:
                    await asyncio.sleep(0.005)


async def test_events_for_a_backend_that_does_not_read_are_bounded(link: Link) -> None:
    _, edge, listener = link
    with connected(edge, listener):
        for _ in range(200):
            edge.send(Event(b'"' + b"x" * 200_000 + b'"').encode())
        assert sum(len(entry.frame) for entry in edge._queue) <= 2 << 20


async def test_no_descriptors_left_is_as_if_nobody_listened(link: Link) -> None:
    recorder, edge, listener = link
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        edge.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert recorder.states[-1] is BackendState.UNAVAILABLE
    await connecting(recorder)
    listener.accept()[0].close()
