"""What the guide and the reference tell their readers is true: the worked example, the
program to be saved, and the file at the end of the socket's path."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backend_script import (
    EXAMPLES,
    KINDS,
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
    CLEARED,
    CONCEALED,
    END,
    EVENT,
    MARK,
    PLAYED,
    READY,
    START,
    STOP,
    BackendProcess,
    EdgeSide,
    encode,
)


@pytest.fixture(params=KINDS)
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launch]:
    with launching(request.param, tmp_path) as launch:
        yield launch


# --- the reference ------------------------------------------------------------------------


def worked_example() -> list[tuple[str, bytes, str]]:
    """Direction, bytes and comment of each line of the reference's worked example."""
    text = (EXAMPLES.parent / "docs" / "backend-protocol.md").read_text()
    lines = re.findall(r"^([<>]) ((?:[0-9a-f]{2,}\b ?)+) +(.+)$", text, re.MULTILINE)
    return [(direction, bytes.fromhex(data), comment) for direction, data, comment in lines]


def test_the_worked_example_of_the_reference(launch: Launch) -> None:
    """Its lengths are right, and a backend that hears the edge's half says the other half."""
    example = worked_example()
    names = {START: "START", READY: "READY", STOP: "STOP", AUDIO: "AUDIO", CONCEALED: "CONCEALED",
             EVENT: "EVENT", PLAYED: "PLAYED", MARK: "MARK", CLEAR: "CLEAR", CLEARED: "CLEARED",
             END: "END"}  # fmt: skip
    assert {comment.split()[0].strip(",:") for _, _, comment in example} == set(names.values())
    for _, data, comment in example:
        assert int.from_bytes(data[1:4]) == len(data) - 4, comment
        assert comment.startswith(names[data[0]])
    process = launch("""
        async def talk(call):
            async for frame in call:
                if isinstance(frame, Concealed):
                    assert (frame.first_sample, frame.samples, frame.how) == (3, 480, "lost")
                    await call.play(bytes.fromhex("e80318fc"))
                    call.end()
                    call.mark("hello")
                elif isinstance(frame, Mark):
                    assert frame == ("hello", True) and call.played == 2, frame
                    call.clear()
                elif isinstance(frame, Cleared):
                    assert frame == (0, 2)
    """)
    with EdgeSide(process.path) as edge:
        sent = 0
        for direction, data, comment in example:
            if direction == ">":
                edge.send_bytes(data.replace(b"24000", b"16000"))
                continue
            edge.wait(lambda sent=sent: len(edge.frames) > sent, comment)
            received = edge.frames[sent]
            if data[0] == READY:
                assert received.json() == {"rate_in": RATE, "rate_out": RATE}
            else:
                assert encode(*received) == data, comment
            sent += 1
        edge.expect_close()
        assert len(edge.frames) == sent


def test_the_agent_of_the_guide(tmp_path: Path) -> None:
    """The program that examples/README.md asks its reader to save does what is said of it."""
    guide = (EXAMPLES / "README.md").read_text()
    (source,) = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    shutil.copy(EXAMPLES / "earshot_backend.py", tmp_path)
    agent = tmp_path / "agent.py"
    agent.write_text(source)
    command = [sys.executable, "-W", "error", str(agent)]
    with BackendProcess(command, tmp_path / "b.sock") as process:
        with connect(process.await_listening()) as edge:
            question = bytes(range(256)) * 200
            edge.audio(question)
            edge.event({"type": "answer"})
            assert edge.expect_pcm(len(question)) == question
            edge.mark(edge.expect(MARK).payload.decode())
            said = edge.expect_event("said")
            assert said == {"type": "said", "heard_ms": len(question) // 48, "cut": False}
            edge.audio(question)
            edge.event({"type": "answer"})
            edge.expect(MARK, skip=1)
            edge.event({"type": "hush"})
            edge.expect(CLEAR)
            edge.cleared(0, len(question) // 2 + 2400)
            said = edge.expect_event("said", skip=1)
            assert said == {"type": "said", "heard_ms": 100, "cut": True}
            edge.stop()
            edge.expect_close()
        assert process.terminate() == 0
        assert process.log.read_text() == ""


# --- the socket file ----------------------------------------------------------------------


ECHO = [sys.executable, str(EXAMPLES / "echo.py")]


def test_a_second_backend_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    with BackendProcess(ECHO, path) as first:
        first.await_listening()
        second = subprocess.run([*ECHO, str(path)], capture_output=True, timeout=60, check=False)
        assert second.returncode != 0
        assert b"another backend listens" in second.stderr
        with connect(first) as edge:
            edge.audio(b"\1\2")
            assert edge.expect_pcm(2) == b"\1\2"


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("not yours")
    refused = subprocess.run([*ECHO, str(path)], capture_output=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert path.read_text() == "not yours"


def test_the_socket_of_a_successor_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    with BackendProcess(ECHO, path) as first:
        first.await_listening()
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as successor:
            successor.bind(str(path))
            assert first.terminate() == 0
            assert path.exists()


def find_python(version: str) -> str | None:
    """An interpreter that runs: on the path, or where pyenv keeps them."""
    pyenv = Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}")
    for python in [shutil.which(f"python{version}"), *pyenv]:
        if python is not None:
            check = [str(python), "-c", ""]
            if not subprocess.run(check, capture_output=True, timeout=60, check=False).returncode:
                return str(python)
    return None


def test_the_oldest_python_that_we_promise(tmp_path: Path) -> None:
    """3.9 where there is one, and the newer ones that there are as well."""
    tried = 0
    for version in ("3.9", "3.12", "3.13", "3.14"):
        python = find_python(version)
        if python is None:
            continue
        for kind in ("asyncio", "threads"):
            script = script_of(UTTERANCE, kind, tmp_path / f"backend_{kind}.py")
            command = [python, "-W", "error", str(script)]
            with BackendProcess(command, tmp_path / "b.sock") as process:
                with connect(process.await_listening()) as edge:
                    edge.event("speak")
                    edge.mark(edge.expect(MARK).payload.decode())
                    assert edge.expect_event("said")["heard_ms"] == 1000
                assert process.terminate() == 0
                assert process.log.read_text() == ""
        tried += 1
    if not tried:
        pytest.skip("no other Python is installed")
