"""Does a backend keep to docs/backend-protocol.md? One test for every example.

Each is a real process on a real socket; the test plays the edge. To try one of
your own, give its command; the socket's path is added as the last argument:

    EARSHOT_BACKEND="node my_backend.mjs" pytest tests/process/test_backend_conformance.py

It must echo AUDIO and EVENT at equal rates.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.edge_side import (
    AUDIO,
    CLEAR,
    CLEARED,
    CONCEALED,
    EVENT,
    FROM_BACKEND,
    MARK,
    PLAYED,
    RATES,
    READY,
    SPEECH,
    START,
    STOP,
    BackendProcess,
    EdgeSide,
    encode,
    encode_json,
    encode_start,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
YOURS = ["yours"] if os.environ.get("EARSHOT_BACKEND") else []
ECHOES = YOURS or ["echo.py", "echo.mjs", "echo-go"]
BACKENDS = YOURS or [*ECHOES, "parrot.py"]


def find_program(names: list[str], places: list[str], package: str) -> str:
    for name in names:
        for place in [None, *places]:
            if found := shutil.which(name, path=place):
                return found
    pytest.fail(f"{names[0]} is not installed: apt-get install {package}", pytrace=False)


@pytest.fixture(scope="session")
def go_echo(tmp_path_factory: pytest.TempPathFactory) -> str:
    go = find_program(["go"], ["/usr/local/go/bin", "/usr/lib/go/bin"], "golang-go")
    binary = tmp_path_factory.mktemp("go") / "echo"
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": ""}
    subprocess.run(
        [go, "build", "-o", str(binary), "."],
        cwd=EXAMPLES / "echo-go",
        env=environment,
        check=True,
        timeout=110,
    )
    return str(binary)


def command_of(name: str, request: pytest.FixtureRequest) -> list[str]:
    if name == "yours":
        return shlex.split(os.environ["EARSHOT_BACKEND"])
    if name == "echo-go":
        return [str(request.getfixturevalue("go_echo"))]
    if name == "echo.mjs":
        node = find_program(["node", "nodejs"], [], "nodejs")
        return [node, str(EXAMPLES / name)]
    return [sys.executable, "-W", "error", str(EXAMPLES / name)]


@pytest.fixture(scope="module")
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackendProcess]:
    """One process for all tests of this file: what one breaks, the next one finds."""
    path = tmp_path_factory.mktemp("backend") / "b.sock"
    with BackendProcess(command_of(request.param, request), path) as process:
        yield process.await_listening()
        assert process.process.poll() is None, "the backend did not live through its tests"
        complaints = process.log.read_text()
        assert "Traceback" not in complaints, complaints


every_backend = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
every_echo = pytest.mark.parametrize("backend", ECHOES, indirect=True)
every_name = pytest.mark.parametrize("name", BACKENDS)


def voice(ms: int, seed: int, rate: int) -> bytes:
    """Noise that no other seed gives, loud enough to pass for speech."""
    source = random.Random(seed)
    count = ms * rate // 1000
    return struct.pack(f"<{count}h", *(source.randint(-9000, 9000) for _ in range(count)))


def silence(ms: int, rate: int) -> bytes:
    return bytes(ms * rate // 1000 * 2)


def utterance(seed: int, rate: int) -> bytes:
    """What an echo sends back and a parrot too: a voice, and then a second of silence."""
    return silence(300, rate) + voice(500, seed, rate) + silence(1000, rate)


def assert_answers(edge: EdgeSide, seed: int) -> None:
    """The session works: what was said comes back, the voice of it complete and exact."""
    before = len(edge.pcm())
    edge.speak(utterance(seed, edge.rate_in))
    said = voice(500, seed, edge.rate_in)
    edge.wait(lambda: said in edge.pcm()[before:], "answer that holds what was said")


# --- set-up and end -----------------------------------------------------------------------


@every_backend
def test_start_is_answered_with_rates_that_the_edge_knows(backend: BackendProcess) -> None:
    with EdgeSide(backend.path) as edge:
        edge.start()
        assert edge.frames[0].kind == READY
        assert edge.rate_in in RATES
        assert edge.rate_out in RATES
        assert edge.frames[0].json().get("format", "pcm_s16le") == "pcm_s16le"
        assert_answers(edge, seed=1)
        assert {frame.kind for frame in edge.frames} <= FROM_BACKEND
        assert len(edge.of(READY)) == 1


@every_backend
def test_stop_closes_the_connection(backend: BackendProcess) -> None:
    with EdgeSide(backend.path) as edge:
        edge.start()
        assert_answers(edge, seed=2)
        edge.stop()
        edge.expect_close()


@every_backend
def test_a_session_that_ends_before_it_starts(backend: BackendProcess) -> None:
    with EdgeSide(backend.path) as edge:
        edge.stop()
        edge.expect_close()
    with EdgeSide(backend.path):
        pass
    with EdgeSide(backend.path) as edge:
        edge.start()
        assert_answers(edge, seed=3)


@every_backend
def test_several_sessions_at_once(backend: BackendProcess) -> None:
    def one(seed: int) -> None:
        with EdgeSide(backend.path, session_id=f"rtc_{seed}") as edge:
            edge.start()
            for turn in range(3):
                assert_answers(edge, seed=seed * 10 + turn)
            edge.stop()
            edge.expect_close()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(one, seed) for seed in range(100, 106)]:
            done.result()


@every_name
def test_the_socket_file(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One left by a dead backend is replaced; it is for its user alone; SIGTERM removes it,
    with a call under way, whose edge sees the connection close."""
    path = tmp_path / "b.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with BackendProcess(command_of(name, request), path) as process:
        process.await_listening()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with EdgeSide(path) as edge:
            edge.start()
            assert_answers(edge, seed=4)
            assert process.terminate() == 0, process.log.read_text()
            edge.expect_close()
    assert not path.exists()
    assert "Traceback" not in process.log.read_text()


# --- framing ------------------------------------------------------------------------------


def later_version() -> bytes:
    """Frames of types that version 1 does not have, empty and large, and what the edge may
    say without being asked."""
    return b"".join(
        [
            encode(0x7E),
            encode(0x03, b'{"later":true}'),
            encode(0xFF, bytes(70_000)),
            encode(CONCEALED, struct.pack(">QIB", 0, 480, 1)),
            encode(PLAYED, struct.pack(">IQII", 0, 0, 0, 30_000)),
            encode(0x21, b"#"),
        ]
    )


@every_backend
@pytest.mark.parametrize("chunk_bytes", [1, 3, 4097, 65536], ids=lambda n: f"chunks of {n}")
def test_frames_may_be_split_and_merged_anywhere(backend: BackendProcess, chunk_bytes: int) -> None:
    with EdgeSide(backend.path) as edge:
        edge.send_bytes(encode_start("rtc_split"), chunk_bytes)
        edge.await_ready()
        frame = edge.rate_in // 50 * 2
        stream = b""
        for seed in (5, 6):
            pcm = utterance(seed, edge.rate_in)
            stream += later_version()
            stream += b"".join(
                encode(AUDIO, pcm[at : at + frame]) for at in range(0, len(pcm), frame)
            )
        edge.send_bytes(stream, chunk_bytes)
        for seed in (5, 6):
            said = voice(500, seed, edge.rate_in)
            edge.wait(lambda said=said: said in edge.pcm(), "all that was said")


@every_backend
def test_start_and_what_follows_may_come_together(backend: BackendProcess) -> None:
    with EdgeSide(backend.path) as edge:
        edge.send_bytes(encode_start("rtc_merged") + later_version() + encode_json(EVENT, {}))
        edge.await_ready()
        assert_answers(edge, seed=7)


# --- echoes -------------------------------------------------------------------------------


@every_echo
def test_audio_comes_back_sample_for_sample(backend: BackendProcess) -> None:
    """In frames of any whole number of samples, whatever the echo makes of the framing."""
    with EdgeSide(backend.path) as edge:
        edge.start()
        assert edge.rate_in == edge.rate_out, "an echo cannot resample"
        pcm = voice(3000, seed=8, rate=edge.rate_in)
        at, counts = 0, [1, 7, 480, 481, 0, 24_000, 5, 960]
        while at < len(pcm):
            for count in counts:
                edge.audio(pcm[at : at + 2 * count])
                at += 2 * count
        assert edge.expect_pcm(len(pcm)) == pcm


@every_echo
def test_events_come_back_in_order(backend: BackendProcess) -> None:
    values = [
        {"type": "chat", "text": "Größe: 5 µm, 日本, \U0001f442", "nested": [{"a": None}, 1.5]},
        {"type": "empty"},
        *({"type": "count", "n": n} for n in range(100)),
        {"type": "long", "text": "x" * 60_000},
    ]
    with EdgeSide(backend.path) as edge:
        edge.start()
        for value in values:
            edge.event(value)
        edge.wait(lambda: len(edge.of(EVENT)) == len(values), "events")
        assert [frame.json() for frame in edge.of(EVENT)] == values


# --- what goes wrong ----------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("how", ["between frames", "in a header", "in a payload", "unread"])
def test_the_edge_vanishes_in_the_middle(backend: BackendProcess, how: str) -> None:
    with EdgeSide(backend.path) as other:
        other.start()
        with EdgeSide(backend.path) as edge:
            edge.start()
            edge.speak(voice(200, seed=9, rate=edge.rate_in))
            if how == "in a header":
                edge.send_bytes(encode(AUDIO, bytes(960))[:3])
            elif how == "in a payload":
                edge.send_bytes(encode(AUDIO, bytes(960))[:501])
            elif how == "unread":
                edge.send_bytes(encode(AUDIO, bytes(960)) * 50)
        assert_answers(other, seed=10)


MALFORMED = {
    "no START": encode(AUDIO, bytes(960)) + encode_json(EVENT, {}),
    "START is not JSON": encode(START, b"{"),
    "START is no object": encode_json(START, [1]),
    "START twice": encode_start("rtc_a") + encode_start("rtc_b"),
    "a version to come": encode_start("rtc_v", version=2),
    "no rate that we know": encode_start("rtc_r", rates=[44_100]),
    "rates that are none": encode_start("rtc_r", rates=None),
    "more than it may hold": struct.pack(">I", AUDIO << 24 | 0xFFFFFF) + bytes(2_000_000),
    "half a sample": encode(AUDIO, b"abc"),
    "EVENT is not JSON": encode(EVENT, b'{"type":'),
    "EVENT is not UTF-8": encode(EVENT, b'"\xff\xfe"'),
    "EVENT is nested deep": encode(EVENT, b"[" * 200_000),
    "EVENT is no object": encode(EVENT, b"null"),
    "MARK is not UTF-8": encode(MARK, b"\xff\xff"),
    "MARK was never placed": encode(MARK, b"what mark?"),
    "too short": b"".join(encode(kind, b"\0") for kind in (CONCEALED, SPEECH, PLAYED, CLEARED)),
    "empty": b"".join(encode(kind) for kind in range(0x01, 0x40) if kind not in (START, STOP)),
    "CLEARED without CLEAR": encode(CLEARED, struct.pack(">IQ", 7, 1 << 63)),
    "STOP is not JSON": encode(STOP, b"\0"),
    "STOP is no object": encode_json(STOP, "bye"),
}


@every_backend
def test_malformed_frames_harm_no_other_session(backend: BackendProcess) -> None:
    """Each in a fresh session, before START and after; another session is up all the while."""
    with EdgeSide(backend.path, "rtc_other") as other:
        other.start()
        for what, data in MALFORMED.items():
            for started in (False, True):
                with EdgeSide(backend.path, f"rtc_{what}") as edge:
                    if started:
                        edge.start()
                    try:
                        edge.send_bytes(data)
                    except OSError:
                        edge.expect_close()  # it may well hang up on us
            assert backend.process.poll() is None, what
        assert_answers(other, seed=11)


@every_backend
def test_random_bytes_harm_no_other_session(backend: BackendProcess) -> None:
    source = random.Random(12)
    with EdgeSide(backend.path, "rtc_other") as other:
        other.start()
        for _ in range(20):
            with EdgeSide(backend.path) as edge:
                try:
                    edge.start()
                    edge.send_bytes(source.randbytes(source.randrange(1, 5000)))
                except OSError:
                    edge.expect_close()
        assert_answers(other, seed=13)


# --- barge-in -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [] if YOURS else ["parrot.py"], indirect=True)
def test_barge_in(backend: BackendProcess) -> None:
    """Who speaks while the parrot speaks makes it CLEAR, with a growing generation; nothing
    of the old generation follows, and what the edge reports as heard reaches the browser."""
    with EdgeSide(backend.path) as edge:
        edge.start()
        rate = edge.rate_in
        edge.played(0, 0, 0, 400)
        edge.speak(utterance(seed=20, rate=rate))
        said = edge.expect_pcm(400 * rate // 1000 * 2)
        for generation in (1, 2):
            old = generation - 1
            heard = 150 * generation * rate // 1000
            edge.played(old, heard, 400 - 150 * generation, 150 * generation)
            edge.speak(voice(500, seed=20 + generation, rate=rate))

            clear = edge.expect(CLEAR, skip=old)
            assert struct.unpack(">I", clear.payload) == (generation,)
            at = edge.frames.index(clear)
            said = edge.pcm()
            # Late news of the old generation, which must count for nothing, and CLEARED.
            edge.played(old, heard + 1, 0, 400)
            edge.cleared(old, heard)
            event = edge.expect_event("parrot.interrupted", skip=old)
            assert event["heard_samples"] == heard
            assert event["heard_ms"] == 150 * generation
            assert event["generation"] == generation
            assert edge.pcm(since=at) == b"", "audio of a generation that was cleared"
            assert edge.pcm() == said

            edge.played(generation, 0, 0, 400)
            edge.speak(silence(1000, rate))
            edge.expect_event("parrot.saying", skip=generation)
            edge.expect_pcm(len(said) + 400 * rate // 1000 * 2)
            begins = edge.pcm(since=at)
            assert voice(500, seed=20 + generation, rate=rate)[:2000] in begins

        # Undisturbed, it finishes: all the audio, END, a mark that comes back.
        edge.played(2, 400 * rate // 1000, 0, 30_000)
        name = edge.expect(MARK).payload.decode()
        edge.mark(name)
        event = edge.expect_event("parrot.said")
        assert event["heard_ms"] == event["ms"]
        assert voice(500, seed=22, rate=rate) in edge.pcm()
        assert edge.closed is False


@pytest.mark.parametrize("backend", [] if YOURS else ["parrot.py"], indirect=True)
def test_the_edge_may_detect_speech(backend: BackendProcess) -> None:
    """SPEECH, once it comes, is believed instead of the parrot's own ears."""
    with EdgeSide(backend.path) as edge:
        edge.start()
        whisper = bytes(edge.rate_in // 2 * 2) + b"\x01\x00" * 100
        edge.send(SPEECH, struct.pack(">BQ", 1, 0))
        edge.speak(whisper)
        edge.send(SPEECH, struct.pack(">BQ", 0, len(whisper) // 2))
        assert edge.expect_pcm(len(whisper)).endswith(whisper)
