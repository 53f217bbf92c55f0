"""examples/earshot_backend.py: what it promises those who copy it.

What a handler finds it reports in events.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.support.backend_script import (
    KINDS,
    MS,
    RATE,
    UTTERANCE,
    Launch,
    connect,
    launching,
    script_of,
)
from tests.support.edge_side import (
    AUDIO,
    CLEAR,
    END,
    EVENT,
    MARK,
    STOP,
    BackendProcess,
    EdgeSide,
    encode,
    encode_json,
    encode_start,
)


@pytest.fixture(params=KINDS)
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launch]:
    with launching(request.param, tmp_path) as launch:
        yield launch


# --- the call -----------------------------------------------------------------------------


def test_a_call_knows_who_calls(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            report(call, type="call", id=call.id, options=call.options, rate_in=call.rate_in,
                   rate_out=call.rate_out, address=call.start["client"]["address"])
            async for frame in call:
                pass
    """)
    with EdgeSide(process.path, "rtc_42") as edge:
        edge.start(options={"voice": "owl"})
        call = edge.expect_event("call")
        assert call["id"] == "rtc_42"
        assert call["options"] == {"voice": "owl"}
        assert (call["rate_in"], call["rate_out"]) == (RATE, RATE)
        assert call["address"] == "192.0.2.1:40000"


def test_every_frame_arrives_as_what_it_is(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            async for frame in call:
                fields = {k: v if not isinstance(v, bytes) else v.hex()
                          for k, v in frame._asdict().items()}
                report(call, type=type(frame).__name__, **fields)
    """)
    with connect(process) as edge:
        edge.audio(b"\1\2\3\4")
        edge.send(0x11, struct.pack(">QIB", 2, 320, 1))
        edge.audio(b"\5\6")
        edge.send(0x11, struct.pack(">QIB", 3, 160, 4))
        edge.audio(b"\7\x08")
        edge.send(0x21, b"#")
        edge.send(0x22, struct.pack(">BQ", 1, 99))
        edge.event({"hello": 1})
        assert edge.expect_event("Audio") == {
            "type": "Audio", "pcm": "01020304", "first_sample": 0,
        }  # fmt: skip
        lost = edge.expect_event("Concealed")
        assert (lost["first_sample"], lost["samples"], lost["how"]) == (2, 320, "lost")
        assert edge.expect_event("Audio", skip=1)["first_sample"] == 2
        assert edge.expect_event("Concealed", skip=1)["how"] == "dropped"
        # What the edge had to drop does not come, yet counts as time.
        assert edge.expect_event("Audio", skip=2)["first_sample"] == 163
        assert edge.expect_event("Digit")["digit"] == "#"
        assert edge.expect_event("Speech")["sample"] == 99
        assert edge.expect_event("Event")["data"] == {"hello": 1}


def test_events_are_json_that_any_parser_takes(launch: Launch) -> None:
    """Python's own would write NaN, and half of a surrogate pair."""
    process = launch("""
        async def talk(call):
            call.send_event({"text": "half of an emoji: \\ud83d"})
            try:
                call.send_event(float("nan"))
            except ValueError as error:
                call.send_event("refused")
            async for frame in call:
                pass
    """)
    with connect(process) as edge:
        edge.wait(lambda: len(edge.of(EVENT)) == 2, "events")
        first, second = edge.of(EVENT)
        assert orjson.loads(first.payload) == {"text": "half of an emoji: ?"}
        assert orjson.loads(second.payload) == "refused"


def test_returning_ends_the_call(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            async for frame in call:
                return
    """)
    with connect(process) as edge:
        edge.event({})
        assert edge.expect(STOP).json() == {"reason": "finished"}
        edge.expect_close()


def test_stop_with_a_reason(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            call.stop("goodbye")
            call.stop("again")
            call.mark("late")
            assert not await call.play(b"late")
            assert [frame async for frame in call] == []
    """)
    with connect(process) as edge:
        edge.expect_close()
        assert [frame.json() for frame in edge.of(STOP)] == [{"reason": "goodbye"}]
        assert edge.frames[-1].kind == STOP


def test_what_a_handler_raises_ends_its_call_alone(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            async for frame in call:
                if frame.data == "time out":
                    raise asyncio.TimeoutError  # as of a model that took too long
                report(call, type="number", is_=1 / frame.data)
    """)
    with connect(process) as well:
        for event in (0, "time out"):
            with connect(process) as ill:
                ill.event(event)
                assert ill.expect(STOP).json() == {"reason": "backend_error"}
                ill.expect_close()
        well.event(4)
        assert well.expect_event("number")["is_"] == 0.25
    log = process.log.read_text()
    assert "ZeroDivisionError" in log
    assert "TimeoutError" in log


def test_the_end_of_the_call_ends_the_iteration(launch: Launch, tmp_path: Path) -> None:
    process = launch("""
        async def talk(call):
            async for frame in call:
                pass
            assert not await call.play(bytes(100))
            async with call.utterance() as said:
                await said.play(bytes(100))
            assert said.interrupted and said.heard == 0
            with open(sys.argv[-1] + ".ended", "a") as ended:
                ended.write(call.id + ": " + call.reason + "\\n")
    """)
    for ending in ("stop", "vanish"):
        with EdgeSide(process.path, ending) as edge:
            edge.start()
            edge.audio(bytes(640))
            if ending == "stop":
                edge.stop("hangup")
                edge.expect_close()
    with connect(process):  # it is still there
        pass
    process.terminate()
    ended = (tmp_path / "b.sock.ended").read_text().splitlines()
    assert ended[0] == "stop: hangup"
    assert "vanish: the edge went away" in ended
    assert "Traceback" not in process.log.read_text()


def test_sigterm_leaves_the_call_to_a_successor(launch: Launch) -> None:
    """Closing without STOP is how the edge knows to connect again."""
    process = launch("""
        async def talk(call):
            async for frame in call:
                pass
    """)
    with connect(process) as edge:
        assert process.terminate() == 0
        edge.expect_close()
        assert edge.of(STOP) == []


def test_a_stalled_handler_loses_the_oldest_and_knows_it(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            await call.play(bytes(32000 * 11))  # more than there is room for
            async for frame in call:
                if isinstance(frame, Audio):
                    report(call, type="state", dropped=call.dropped_frames,
                           first=frame.first_sample)
                    return
    """)
    with connect(process) as edge:
        edge.expect_pcm(10_000 * MS)
        edge.send_bytes(encode(AUDIO, bytes(640)) * 4000)
        edge.played(0, 10_000 * MS // 2, 0, 30_000)
        state = edge.expect_event("state")
        assert state == {"type": "state", "dropped": 1000, "first": 1000 * 320}


@pytest.mark.parametrize(
    "frame",
    [
        encode(AUDIO, b"abc"),
        encode(0x20, b"["),
        encode(0x20, b"[" * 200_000),
        encode(0x20, b'"\xff"'),
        encode(MARK, b"\xff"),
        encode(0x21, b"\xff"),
        *(encode(kind, b"\0") for kind in (0x11, 0x22, 0x30, 0x33)),
    ],
    ids=lambda frame: f"{frame[0]:02x} {frame[4:6]!r}",
)
def test_a_malformed_frame_is_ignored(launch: Launch, frame: bytes) -> None:
    process = launch("""
        async def talk(call):
            async for frame in call:
                report(call, type=type(frame).__name__)
    """)
    with connect(process) as edge:
        edge.send_bytes(frame)
        edge.send(0x21, b"1")
        edge.expect_event("Digit")
        assert len(edge.frames) == 2, "it was taken for something"
    assert "ignored a malformed frame" in process.log.read_text()


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (encode(AUDIO, bytes(2)), "expected_start"),
        (encode_json(0x01, {"version": 9}), "bad_start"),
        (encode(0x01, b"\xff"), "bad_start"),
        (encode_start("rtc_rates", rates=[8000]), "rate_not_offered"),
        (encode_start("rtc_long") + struct.pack(">I", 0x10FFFFFF), "frame_too_long"),
    ],
)
def test_a_broken_edge_is_told_why(launch: Launch, first: bytes, reason: str) -> None:
    process = launch("""
        async def talk(call):
            async for frame in call:
                pass
    """)
    with EdgeSide(process.path) as edge:
        edge.send_bytes(first)
        assert edge.expect(STOP).json() == {"reason": reason}
        edge.expect_close()


# --- speaking -----------------------------------------------------------------------------


def test_play_waits_for_room_and_loses_nothing(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            pcm = bytes(range(256)) * 250
            async for frame in call:
                whole = await call.play(pcm)
                report(call, type="played", whole=whole, queued_ms=call.queued_ms)
    """)
    with connect(process, room_ms=500) as edge:
        edge.event({})
        pcm = bytes(range(256)) * 250  # two seconds
        assert edge.expect_pcm(500 * MS) == pcm[: 500 * MS]
        for heard_ms in range(100, 1600, 100):
            assert edge.of(0x20) == []
            edge.played(0, heard_ms * MS // 2, 400, 100)
            assert edge.expect_pcm((500 + heard_ms) * MS) == pcm[: (500 + heard_ms) * MS]
        assert edge.expect_event("played") == {"type": "played", "whole": True, "queued_ms": 500}


def test_half_a_sample_waits_for_its_other_half(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            for piece in (b"abc", b"", b"d", b"efghi", b"j", b"k"):
                await call.play(piece)
            call.end()
            await call.play(b"xy")
            async for frame in call:
                pass
    """)
    with connect(process) as edge:
        edge.expect(END)
        assert edge.expect_pcm(12) == b"abcdefghijxy"
        assert all(len(frame.payload) % 2 == 0 for frame in edge.of(AUDIO))


def test_clear_ends_a_play_that_waits(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            async def speak():
                whole = await call.play(b"o" * 32000)
                report(call, type="first", whole=whole)
            async for frame in call:
                if frame.data == "speak":
                    spawn(speak)
                elif frame.data == "clear":
                    call.clear()
                    report(call, type="state", played=call.played, queued_ms=call.queued_ms,
                           room_ms=call.room_ms)
                    await call.play(b"n" * 6400)
                elif frame.data == "state":
                    report(call, type="state", played=call.played, queued_ms=call.queued_ms,
                           room_ms=call.room_ms)
    """)
    with connect(process, room_ms=300) as edge:
        edge.event("speak")
        edge.expect_pcm(300 * MS)
        edge.played(0, 1600, 200, 100)
        edge.expect_pcm(400 * MS)
        edge.event("clear")
        assert edge.expect_event("first") == {"type": "first", "whole": False}
        state = edge.expect_event("state")
        assert (state["played"], state["queued_ms"], state["room_ms"]) == (0, 0, 300)
        assert edge.expect_pcm(600 * MS) == b"o" * 400 * MS + b"n" * 200 * MS
        clear = edge.frames.index(edge.expect(CLEAR))
        assert edge.pcm(since=clear) == b"n" * 200 * MS

        # News of the old generation that was under way says nothing of the new one.
        edge.played(0, 3200, 100, 200)
        edge.event("state")
        state = edge.expect_event("state", skip=1)
        assert (state["played"], state["queued_ms"]) == (0, 200)
        edge.played(1, 1600, 100, 200)
        edge.event("state")
        state = edge.expect_event("state", skip=2)
        assert (state["played"], state["queued_ms"], state["room_ms"]) == (1600, 100, 200)


def test_plays_at_once_take_turns(launch: Launch) -> None:
    process = launch("""
        async def talk(call):
            async def a():
                await call.play(b"a" * 32000)
            async def b():
                await call.play(b"b" * 640)
            async for frame in call:
                spawn({"a": a, "b": b}[frame.data])
                report(call, type="spawned")
    """)
    # `a` goes on in pieces of 100 ms; there would be room for `b`, but it is not its turn.
    with connect(process, room_ms=550) as edge:
        edge.event("a")
        edge.expect_pcm(500 * MS)
        edge.event("b")
        edge.expect_event("spawned", skip=1)
        edge.played(0, 500 * MS // 2, 0, 2000)
        assert edge.expect_pcm(1020 * MS) == b"a" * 32000 + b"b" * 640


def test_marks_are_heard_or_cleared(launch: Launch) -> None:
    """Names may repeat; a mark that crossed a CLEAR is judged by what CLEARED says."""
    process = launch("""
        async def talk(call):
            for name in ("a", "b", "b", "c"):
                await call.play(bytes(3200))
                call.mark(name)
            async for frame in call:
                if isinstance(frame, Event):
                    call.clear()
                    call.mark("b")
                elif isinstance(frame, Mark):
                    report(call, type="mark", name=frame.name, heard=frame.heard)
                elif isinstance(frame, Cleared):
                    report(call, type="cleared", old=frame.generation, n=frame.heard_samples)
    """)
    with connect(process) as edge:
        edge.expect(MARK, skip=3)
        edge.mark("a")
        assert edge.expect_event("mark") == {"type": "mark", "name": "a", "heard": True}
        edge.event("clear")
        edge.expect(CLEAR)
        edge.mark("b")  # was heard while CLEAR was under way
        edge.mark("b")  # was cleared
        edge.mark("nonsense")
        edge.cleared(0, 3300)
        edge.mark("c")  # an edge may also name the cleared ones after CLEARED
        edge.mark("b")
        outcomes = [edge.expect_event("mark", skip=n) for n in (1, 2, 3, 4)]
        assert [(o["name"], o["heard"]) for o in outcomes] == [
            ("b", True), ("b", False), ("c", False), ("b", True),
        ]  # fmt: skip
        assert edge.expect_event("cleared") == {"type": "cleared", "old": 0, "n": 3300}


def test_an_utterance_ends_when_it_was_heard(launch: Launch) -> None:
    with connect(launch(UTTERANCE)) as edge:
        for turn in range(2):
            edge.event("speak")
            edge.expect(END, skip=turn)
            name = edge.expect(MARK, skip=turn).payload.decode()
            assert len(edge.pcm()) == 1000 * MS * (turn + 1)
            edge.played(0, 1000 * MS // 2 * (turn + 1), 0, 30_000)
            edge.mark(name)
            said = edge.expect_event("said", skip=turn)
            assert (said["heard_ms"], said["samples"], said["interrupted"]) == (1000, RATE, False)


@pytest.mark.parametrize("crossed", [False, True], ids=["cleared", "heard as CLEAR was sent"])
def test_an_utterance_knows_how_much_was_heard(launch: Launch, crossed: bool) -> None:
    """CLEARED counts from the generation's start; an utterance counts from its own."""
    with connect(launch(UTTERANCE)) as edge:
        edge.event("speak")
        edge.mark(edge.expect(MARK).payload.decode())
        edge.expect_event("said")
        edge.event("speak")
        second = edge.expect(MARK, skip=1).payload.decode()
        edge.event("clear")
        edge.expect(CLEAR)
        edge.mark(second)
        edge.cleared(0, 2 * RATE if crossed else RATE + 8000)
        said = edge.expect_event("said", skip=1)
        assert said["interrupted"] is not crossed
        assert said["heard_ms"] == (1000 if crossed else 500)


def test_an_utterance_cleared_while_it_is_handed_over(launch: Launch) -> None:
    """What its maker says afterwards is never sent: not in the new generation either."""
    with connect(launch(UTTERANCE), room_ms=300) as edge:
        edge.event("speak")
        edge.expect_pcm(300 * MS)
        edge.event("clear")
        edge.expect(CLEAR)
        edge.played(1, 0, 0, 30_000)
        edge.cleared(0, 200 * MS // 2)
        said = edge.expect_event("said")
        assert said == {
            "type": "said", "samples": 300 * MS // 2, "heard": 200 * MS // 2, "heard_ms": 200,
            "interrupted": True,
        }  # fmt: skip
        assert len(edge.pcm()) == 300 * MS
        assert edge.of(MARK) == []


def test_what_was_asked_before_a_clear_is_not_said_after_it(tmp_path: Path) -> None:
    """A play belongs to the moment of its call, not to that of its first await."""
    source = """
        async def talk(call):
            stale = call.play(b"stale!")
            call.clear()
            assert not await stale
            await call.play(b"new")
            call.send_event({"type": "done"})
            async for frame in call:
                pass
    """
    script = script_of(source, "asyncio", tmp_path / "backend.py")
    command = [sys.executable, str(script)]
    with (
        BackendProcess(command, tmp_path / "b.sock") as process,
        connect(process.await_listening()) as edge,
    ):
        edge.expect_event("done")
        assert edge.pcm() == b"ne"
