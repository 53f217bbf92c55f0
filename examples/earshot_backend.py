"""The backend's side of Earshot: hear a person and answer, in 16-bit PCM.

Copy this file into your project. It needs Python 3.9 or later, a Unix, and
nothing else. The shortest backend, an echo::

    import earshot_backend as earshot

    async def talk(call: earshot.Call) -> None:
        async for frame in call:
            if isinstance(frame, earshot.Audio):
                await call.play(frame.pcm)

    earshot.run(talk, "/run/earshot/echo.sock", rate_in=24000, rate_out=24000)

``talk`` runs once per call, and what it raises ends that call alone. Without
asyncio, write ``def talk(call: BlockingCall)`` with a plain ``for`` and start
it with ``run_threads``: the same methods then wait instead of being awaited.

Never sleep to pace audio. Hand an utterance over as fast as you have it: the
edge plays it in time, and ``clear`` silences it within one frame::

    async with call.utterance() as said:
        async for pcm in text_to_speech(answer):
            await said.play(pcm)
    print(said.heard_ms, "ms were heard,", "interrupted" if said.interrupted else "all of it")

The wire format is in docs/backend-protocol.md.
"""

# ruff: noqa: UP007 - unions that are evaluated must suit Python 3.9
from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import select
import signal
import socket
import stat
import struct
import threading
import time
from collections import deque
from typing import (  # noqa: UP035
    Any,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    cast,
)

log = logging.getLogger("earshot_backend")
T = TypeVar("T")

START, READY, STOP = 0x01, 0x02, 0x0F
AUDIO, CONCEALED, EVENT, DTMF, SPEECH = 0x10, 0x11, 0x20, 0x21, 0x22
PLAYED, MARK, CLEAR, CLEARED, END = 0x30, 0x31, 0x32, 0x33, 0x34

RATES = (8000, 12000, 16000, 24000, 48000)
CONCEALED_HOW = {1: "lost", 2: "late", 3: "dtx", 4: "dropped"}
MAX_PAYLOAD_BYTES = 1 << 20
MAX_MARK_BYTES = 1024
INITIAL_ROOM_MS = 10_000  # what any edge holds; its first PLAYED gives the real figure
START_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 2.0  # for handlers in threads, on SIGTERM
# Frames kept for a handler that has stalled: a minute of audio. Beyond it the
# oldest go, for a reader that stops would also stop hearing PLAYED and CLEARED.
MAX_WAITING_FRAMES = 3000


# --- what a call yields -------------------------------------------------------------------


class Audio(NamedTuple):
    """What the person said: s16le mono at ``rate_in``. The sample count is time."""

    pcm: bytes
    first_sample: int


class Concealed(NamedTuple):
    """Samples about to come were not heard. ``how``: lost, late or dtx (nothing was said);
    dropped: we did not read in time, and these samples do not come at all."""

    first_sample: int
    samples: int
    how: str


class Event(NamedTuple):
    """JSON from the browser's data channel, or from the edge itself (``type`` "error")."""

    data: Any


class Digit(NamedTuple):
    """A telephone key: 0-9, *, #, A-D."""

    digit: str


class Speech(NamedTuple):
    """The edge heard speech begin or end at a sample of the uplink."""

    started: bool
    sample: int


class Mark(NamedTuple):
    """A ``mark`` came back: its place was heard, or was cleared before that."""

    name: str
    heard: bool


class Cleared(NamedTuple):
    """A ``clear`` was done: so many samples of ``generation``, the old one, were heard."""

    generation: int
    heard_samples: int


Frame = Union[Audio, Concealed, Event, Digit, Speech, Mark, Cleared]


class Interrupted(Exception):  # noqa: N818 - an outcome, not an error
    """Raised by ``Utterance.play`` after a clear; its ``with`` block swallows it."""


# --- the wire -----------------------------------------------------------------------------


class _BadFrameError(Exception):
    """The edge broke the protocol in a way that ends this call."""


def encode_frame(kind: int, payload: bytes = b"") -> bytes:
    """A frame: four bytes, ``kind << 24 | length`` big-endian, then the payload."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame holds {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
    return struct.pack(">I", kind << 24 | len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (kind, payload) of every frame that is now whole."""
        self._buffer += data
        while len(self._buffer) >= 4:
            (word,) = struct.unpack_from(">I", self._buffer)
            end = 4 + (word & 0xFFFFFF)
            if end > 4 + MAX_PAYLOAD_BYTES:
                raise _BadFrameError("frame_too_long")
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[4:end])
            del self._buffer[:end]
            yield word >> 24, payload


class _Placed:
    """A mark that has not come back: where it stands, and then how it ended."""

    def __init__(self, name: str, generation: int, position: int, mine: bool) -> None:
        self.name, self.generation, self.position, self.mine = name, generation, position, mine
        self.returned = False
        self.heard: bool | None = None


# --- one call: what it knows, without a socket --------------------------------------------


class _CallState:
    """The protocol's state, shared by ``Call`` and ``BlockingCall``.

    A playout generation is what is said between two clears. What the edge
    reports of an older one never touches the counts of this one.

    Methods named ``_*_steps`` yield where they must wait for news from the
    edge; each kind of call waits in its own way.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self.rate_in, self.rate_out = rate_in, rate_out
        self.start: dict[str, Any] = {}
        """START as it came: session_id, backend, options, client and more."""
        self.reason: str | None = None
        """Why the call ended; None while it goes on."""
        self.generation = 0
        """Moves on with every clear."""
        self.played = 0
        """Samples of this generation that were played."""
        self.dropped_frames = 0
        """Frames thrown away because the handler did not take them in time."""
        self._lock = threading.RLock()
        self._reader = FrameReader()
        self._inbox: deque[Frame] = deque()
        self._next_sample = 0
        self._sent = 0  # samples of this generation
        self._limit_ms = INITIAL_ROOM_MS
        self._odd = b""  # half a sample, until its other half comes
        self._turns: deque[object] = deque()  # plays under way; the first one speaks
        self._marks: list[_Placed] = []
        self._heard_of: dict[int, int] = {}  # cleared generation -> samples heard

    def _send(self, data: bytes) -> None:
        raise NotImplementedError

    def _notify(self) -> None:
        """Wake all that wait for news."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """The session's id; the same when the edge reconnects in the middle of a call."""
        return str(self.start.get("session_id", ""))

    @property
    def options(self) -> dict[str, Any]:
        """What the page sent along when it made the call."""
        options = self.start.get("options")
        return options if isinstance(options, dict) else {}

    @property
    def queued_ms(self) -> int:
        """Handed over and not yet played, in ms."""
        return max(0, self._sent - self.played) * 1000 // self.rate_out

    @property
    def room_ms(self) -> int:
        """What the edge would still take, in ms; ``play`` waits when there is none."""
        return max(0, self._limit_ms - self.queued_ms)

    def clear(self) -> int:
        """Be silent within one frame; return the new generation. ``Cleared`` follows."""
        with self._lock:
            self.generation += 1
            self.played = self._sent = 0
            self._odd = b""
            self._write(CLEAR, struct.pack(">I", self.generation))
            self._notify()
            return self.generation

    def mark(self, name: str) -> None:
        """Ask for a ``Mark`` once what was played up to here has been heard."""
        self._place(name, mine=False)

    def end(self) -> None:
        """Say that an utterance ends here, so that its last, partial frame is played."""
        with self._lock:
            self._odd = b""
            self._write(END)

    def send_event(self, data: Any) -> None:
        """Send JSON to the browser's data channel. ValueError for what JSON cannot say."""
        text = json.dumps(data, ensure_ascii=False, allow_nan=False)
        # Half a surrogate pair, as a text cut in the middle of an emoji leaves it, becomes "?".
        self._write(EVENT, text.encode("utf-8", "replace"))

    def stop(self, reason: str = "finished") -> None:
        """End the call. Returning from the handler does the same."""
        with self._lock:
            self._write(STOP, json.dumps({"reason": reason}).encode())
            self._over(reason)

    def _write(self, kind: int, payload: bytes = b"") -> None:
        with self._lock:
            if self.reason is None:
                self._send(encode_frame(kind, payload))

    def _over(self, reason: str) -> None:
        with self._lock:
            if self.reason is None:
                self.reason = reason
                self._notify()

    def _place(self, name: str, mine: bool) -> _Placed:
        if len(name.encode()) > MAX_MARK_BYTES:
            raise ValueError(f"a mark's name has at most {MAX_MARK_BYTES} bytes")
        with self._lock:
            placed = _Placed(name, self.generation, self._sent, mine)
            self._marks.append(placed)
            self._write(MARK, name.encode())
            return placed

    # waiting

    def _start_steps(self) -> Generator[None, None, None]:
        while not self.start and self.reason is None:
            yield

    def _next_steps(self) -> Generator[None, None, Frame | None]:
        while not self._inbox:
            if self.reason is not None:
                return None
            yield
        return self._inbox.popleft()

    def _play_steps(
        self, pcm: bytes, generation: int, said: _UtteranceState | None = None
    ) -> Generator[None, None, bool]:
        turn = object()
        self._turns.append(turn)
        try:
            while self._turns[0] is not turn:
                yield
            if generation == self.generation:
                pcm = self._odd + pcm
                self._odd = pcm[len(pcm) & ~1 :]
            whole, step = len(pcm) & ~1, self.rate_out // 10 * 2  # 100 ms at a time
            for at in range(0, whole, step):
                piece = pcm[at : min(at + step, whole)]
                samples = len(piece) // 2
                while samples * 1000 > self.room_ms * self.rate_out and self._live(generation):
                    yield
                if not self._live(generation):
                    return False
                self._write(AUDIO, piece)
                self._sent += samples
                if said is not None:
                    said.samples += samples
            return self._live(generation)
        finally:
            self._turns.remove(turn)
            self._notify()

    def _live(self, generation: int) -> bool:
        return generation == self.generation and self.reason is None

    # what the edge sends

    def _feed(self, data: bytes) -> None:
        with self._lock:
            try:
                for kind, payload in self._reader.feed(data):
                    if self.reason is None:
                        self._handle(kind, payload)
            except _BadFrameError as error:
                log.error("%s: the edge broke the protocol: %s", self.id, error)
                self.stop(str(error))
            self._notify()

    def _handle(self, kind: int, payload: bytes) -> None:
        handler = self._HANDLERS.get(kind)
        if handler is None:
            return  # a frame of a later version
        if not self.start and kind not in (START, STOP):
            raise _BadFrameError("expected_start")
        try:
            handler(self, payload)
        except (ValueError, struct.error, RecursionError) as error:
            if kind == START:
                raise _BadFrameError("bad_start") from error
            log.warning("%s: ignored a malformed frame 0x%02x: %s", self.id, kind, error)

    def _deliver(self, frame: Frame) -> None:
        if len(self._inbox) >= MAX_WAITING_FRAMES:
            self._inbox.popleft()
            self.dropped_frames += 1
        self._inbox.append(frame)

    def _on_start(self, payload: bytes) -> None:
        if self.start:
            return
        start = json.loads(payload)
        if not isinstance(start, dict) or start.get("version") != 1:
            raise ValueError("not version 1")
        if not {self.rate_in, self.rate_out} <= set(start.get("rates", RATES)):
            raise _BadFrameError("rate_not_offered")
        self.start = start
        rates = {"rate_in": self.rate_in, "rate_out": self.rate_out}
        self._write(READY, json.dumps(rates).encode())

    def _on_stop(self, payload: bytes) -> None:
        reason = "stopped"
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            reason = str(json.loads(payload).get("reason", reason))
        self._over(reason)

    def _on_audio(self, payload: bytes) -> None:
        if len(payload) % 2:
            raise ValueError("half a sample")
        self._deliver(Audio(payload, self._next_sample))
        self._next_sample += len(payload) // 2

    def _on_concealed(self, payload: bytes) -> None:
        first, samples, how = struct.unpack_from(">QIB", payload)
        if how == 4:
            self._next_sample = first + samples
        self._deliver(Concealed(first, samples, CONCEALED_HOW.get(how, "unknown")))

    def _on_event(self, payload: bytes) -> None:
        self._deliver(Event(json.loads(payload)))

    def _on_dtmf(self, payload: bytes) -> None:
        self._deliver(Digit(payload.decode("ascii")))

    def _on_speech(self, payload: bytes) -> None:
        started, sample = struct.unpack_from(">BQ", payload)
        self._deliver(Speech(started != 0, sample))

    def _on_played(self, payload: bytes) -> None:
        generation, played, queued_ms, room_ms = struct.unpack_from(">IQII", payload)
        self._limit_ms = queued_ms + room_ms
        if generation == self.generation:
            self.played = max(self.played, played)

    def _on_cleared(self, payload: bytes) -> None:
        generation, samples = struct.unpack_from(">IQ", payload)
        self._heard_of[generation] = samples
        self._settle_marks()
        self._deliver(Cleared(generation, samples))

    def _on_mark(self, payload: bytes) -> None:
        # Marks come back in order, so of two with one name this is the older.
        name = payload.decode()
        for placed in self._marks:
            if placed.name == name and not placed.returned:
                placed.returned = True
                self._settle_marks()
                return
        raise ValueError(f"no mark {name!r} was placed")

    def _settle_marks(self) -> None:
        """Say of marks that came back whether they were heard.

        One of an older generation may have crossed our CLEAR on its way: only
        the number in CLEARED tells.
        """
        for placed in [mark for mark in self._marks if mark.returned]:
            if placed.generation in self._heard_of:
                placed.heard = placed.position <= self._heard_of[placed.generation]
            elif placed.generation == self.generation:
                placed.heard = True
            else:
                continue  # CLEARED is still on its way
            self._marks.remove(placed)
            if not placed.mine:
                self._deliver(Mark(placed.name, placed.heard))

    _HANDLERS: dict[int, Callable[[_CallState, bytes], None]] = {  # noqa: RUF012
        START: _on_start, STOP: _on_stop, AUDIO: _on_audio, CONCEALED: _on_concealed,
        EVENT: _on_event, DTMF: _on_dtmf, SPEECH: _on_speech, PLAYED: _on_played,
        CLEARED: _on_cleared, MARK: _on_mark,
    }  # fmt: skip


class _UtteranceState:
    """One thing said, bound to the playout generation in which it began."""

    def __init__(self, call: _CallState) -> None:
        self.samples = 0
        """Samples handed to the edge."""
        self.heard = 0
        """Samples that were heard; known when the ``with`` block has ended."""
        self.interrupted = False
        self._state, self._generation, self._first = call, call.generation, call._sent
        self._mark: _Placed | None = None

    @property
    def heard_ms(self) -> int:
        return self.heard * 1000 // self._state.rate_out

    def _finish_steps(self) -> Generator[None, None, None]:
        """Wait until it is known how much was heard."""
        call = self._state
        if call._live(self._generation):
            call.end()
            self._mark = call._place(f"utterance@{self._first}", mine=True)
        while self._mark is None or self._mark.heard is None:
            if self._generation in call._heard_of or call.reason is not None:
                break
            yield
        if self._mark is not None and self._mark.heard:
            self.heard = self.samples
            return
        self.interrupted = True
        now = call.played if self._generation == call.generation else 0
        played = call._heard_of.get(self._generation, now)
        self.heard = max(0, min(played - self._first, self.samples))


# --- asyncio ------------------------------------------------------------------------------


class Call(_CallState):
    """A call, for asyncio. Iterate over it in one task; speak from any."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rate_in: int,
        rate_out: int,
    ) -> None:
        super().__init__(rate_in, rate_out)
        self._stream, self._writer = reader, writer
        self._waiters: list[asyncio.Future[None]] = []

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> Frame:
        frame = await self._run(self._next_steps())
        if frame is None:
            raise StopAsyncIteration
        return frame

    def play(self, pcm: bytes) -> Awaitable[bool]:
        """Say s16le mono at ``rate_out``; wait only while the edge has no room.

        False: a ``clear`` came, or the call ended, before all was handed over.
        """
        return self._run(self._play_steps(pcm, self.generation))

    def utterance(self) -> Utterance:
        """``async with call.utterance() as said``: ends once it was heard, or cleared."""
        return Utterance(self)

    async def _run(self, steps: Generator[None, None, T]) -> T:
        with contextlib.closing(steps):
            while True:
                try:
                    next(steps)
                except StopIteration as done:
                    return cast("T", done.value)
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _send(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    async def _pump(self) -> None:
        try:
            while self.reason is None and (data := await self._stream.read(65536)):
                self._feed(data)
        except OSError:
            pass
        finally:
            self._over("the edge went away")


Talk = Callable[[Call], Awaitable[None]]


class Utterance(_UtteranceState):
    """What ``Call.utterance`` gives."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._call = call

    async def play(self, pcm: bytes) -> None:
        """Say PCM. Raises Interrupted once the call was cleared or ended."""
        if not await self._call._run(self._call._play_steps(pcm, self._generation, self)):
            raise Interrupted

    async def __aenter__(self) -> Utterance:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> bool:
        if error is not None and not isinstance(error, Interrupted):
            return False
        await self._call._run(self._finish_steps())
        return True


async def serve(talk: Talk, path: str, *, rate_in: int = 16000, rate_out: int = 24000) -> NoReturn:
    """Answer the calls that the edge brings to ``path``, until cancelled.

    The calls of the moment are then left without STOP, so that the edge
    brings them to the backend that listens at ``path`` next.
    """
    _check_rates(rate_in, rate_out)
    tasks: set[asyncio.Future[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_one_call(talk, Call(reader, writer, rate_in, rate_out)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: writer.close())

    with listen(path) as listener:
        server = await asyncio.start_unix_server(connected, sock=listener)
        try:
            while True:
                await asyncio.sleep(3600)
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _one_call(talk: Talk, call: Call) -> None:
    pump = asyncio.ensure_future(call._pump())
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(call._run(call._start_steps()), START_TIMEOUT_S)
        if not call.start:
            call.stop("expected_start")
            return
        await talk(call)
        call.stop("finished")
    except Exception:
        log.exception("%s: the handler failed", call.id)
        call.stop("backend_error")
    finally:
        pump.cancel()


def run(talk: Talk, path: str, *, rate_in: int = 16000, rate_out: int = 24000) -> None:
    """``serve`` for a program that does nothing else, until SIGTERM or SIGINT."""

    async def main() -> None:
        serving = asyncio.ensure_future(serve(talk, path, rate_in=rate_in, rate_out=rate_out))
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    asyncio.run(main())


# --- threads ------------------------------------------------------------------------------


class BlockingCall(_CallState):
    """A call, for code without asyncio. Iterate in one thread; speak from any."""

    def __init__(self, connection: socket.socket, rate_in: int, rate_out: int) -> None:
        super().__init__(rate_in, rate_out)
        self._changed = threading.Condition(self._lock)
        self._connection = connection

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._run(self._next_steps())) is not None:
            yield frame

    def play(self, pcm: bytes) -> bool:
        """Say s16le mono at ``rate_out``; wait only while the edge has no room.

        False: a ``clear`` came, or the call ended, before all was handed over.
        """
        return self._run(self._play_steps(pcm, self.generation))

    def utterance(self) -> BlockingUtterance:
        """``with call.utterance() as said``: ends once it was heard, or cleared."""
        return BlockingUtterance(self)

    def _run(self, steps: Generator[None, None, T], timeout_s: float | None = None) -> T:
        with self._changed, contextlib.closing(steps):
            while True:
                try:
                    next(steps)
                except StopIteration as done:
                    return cast("T", done.value)
                if not self._changed.wait(timeout_s):
                    self.stop("expected_start")

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError:
            self._over("the edge went away")

    def _pump(self) -> None:
        try:
            while self.reason is None and (data := self._connection.recv(65536)):
                self._feed(data)
        except OSError:
            pass
        finally:
            self._over("the edge went away")


class BlockingUtterance(_UtteranceState):
    """What ``BlockingCall.utterance`` gives."""

    def __init__(self, call: BlockingCall) -> None:
        super().__init__(call)
        self._call = call

    def play(self, pcm: bytes) -> None:
        """Say PCM. Raises Interrupted once the call was cleared or ended."""
        if not self._call._run(self._call._play_steps(pcm, self._generation, self)):
            raise Interrupted

    def __enter__(self) -> BlockingUtterance:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        if error is not None and not isinstance(error, Interrupted):
            return False
        self._call._run(self._finish_steps())
        return True


def run_threads(
    talk: Callable[[BlockingCall], None], path: str, *, rate_in: int = 16000, rate_out: int = 24000
) -> None:
    """``run`` for a handler without asyncio: each call has a thread of its own."""
    _check_rates(rate_in, rate_out)

    threads: dict[threading.Thread, socket.socket] = {}

    def one_call(connection: socket.socket) -> None:
        call = BlockingCall(connection, rate_in, rate_out)
        threading.Thread(target=call._pump, daemon=True).start()
        try:
            call._run(call._start_steps(), START_TIMEOUT_S)
            if call.start:
                talk(call)
                call.stop("finished")
        except Exception:
            log.exception("%s: the handler failed", call.id)
            call.stop("backend_error")
        finally:
            _shut(connection)
            connection.close()
            threads.pop(threading.current_thread(), None)

    with listen(path) as listener, _signal_socket() as stopped:
        while stopped not in select.select([listener, stopped], [], [])[0]:
            connection, _ = listener.accept()
            thread = threading.Thread(target=one_call, args=(connection,), daemon=True)
            threads[thread] = connection
            thread.start()
    deadline_s = time.monotonic() + JOIN_TIMEOUT_S
    for thread, connection in list(threads.items()):
        _shut(connection)
        thread.join(max(0.0, deadline_s - time.monotonic()))


def _shut(connection: socket.socket) -> None:
    """Wake the thread that reads from it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _signal_socket() -> Iterator[socket.socket]:
    """A socket that is readable after SIGTERM or SIGINT; never, outside the main thread.

    A handler alone would not do: a signal just before accept() would leave it waiting.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        if threading.current_thread() is not threading.main_thread():
            yield reader
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer.fileno())
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)


# --- the socket file ----------------------------------------------------------------------


def _check_rates(*rates: int) -> None:
    for rate in rates:
        if rate not in RATES:
            raise ValueError(f"a rate is one of {RATES}, not {rate}")


@contextlib.contextmanager
def listen(path: str) -> Iterator[socket.socket]:
    """Listen at ``path``, for this user alone; take the file away at the end.

    A file that a dead backend left is replaced; OSError if one listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # against another that starts right now
            _remove_stale(path)
            with contextlib.suppress(OSError):
                os.fchmod(listener.fileno(), 0o600)  # Linux: the file is born with this mode
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
            mine = os.stat(path).st_ino
        finally:
            os.close(directory)
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == mine:
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket", path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
    except (BlockingIOError, socket.timeout):  # noqa: UP041 - its backlog is full: it lives
        raise OSError(errno.EADDRINUSE, "another backend listens", path) from None
    else:
        raise OSError(errno.EADDRINUSE, "another backend listens", path)
