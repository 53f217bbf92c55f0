"""Log lines: one JSON object each, fields kept, nobody held up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run(program: str, log_format: str = "json", **environ: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the log belongs to a process."""
    head = f"import logging\nfrom dataplane import log\nlog.setup('relay 0', {log_format!r})\n"
    return subprocess.run(
        [sys.executable, "-c", head + "logger = log.get_logger()\n" + program],
        cwd=ROOT,
        env=dict(os.environ, **environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def lines(program: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(program).stderr.splitlines()]


def test_json_line() -> None:
    (line,) = lines("logger.info('flow.moved', slot=7, to='[::1]:5', why=None)")
    assert line.pop("ts").endswith("+00:00")
    assert line == {
        "level": "info",
        "process": "relay 0",
        "event": "flow.moved",
        "slot": 7,
        "to": "[::1]:5",
        "why": None,
    }


def test_fields_do_not_overwrite_the_frame() -> None:
    (line,) = lines("logger.info('a.b', level='x', process=3, n=object)")
    assert (line["level"], line["process"]) == ("info", "relay 0")
    assert (line["level_"], line["process_"]) == ("x", 3)
    assert "object" in line["n"]


def test_level() -> None:
    assert lines("logger.debug('a.b')") == []
    assert [x["event"] for x in lines("logger.debug('a'); logger.warning('b')")] == ["b"]


def test_uncaught_exception_is_one_line() -> None:
    (line,) = lines("raise ValueError('bad\\nnews')")
    assert line["event"] == "process.crashed"
    assert line["error"] == "ValueError: bad\nnews"
    assert "Traceback" in line["traceback"]


def test_libraries_speak_through_the_same_lines() -> None:
    (line,) = lines("logging.getLogger('asyncio').error('%s broke', 'it')")
    assert (line["event"], line["logger"], line["message"]) == (
        "library.message",
        "asyncio",
        "it broke",
    )


def test_set_up_twice_writes_once() -> None:
    assert len(lines("log.setup('relay 0', 'json'); logger.info('a.b')")) == 1


def test_pretty_line_cannot_be_forged() -> None:
    result = run("logger.info('a.b', name='x\\nINFO forged', n=1)", "pretty", NO_COLOR="1")
    (line,) = result.stderr.splitlines()
    assert line.endswith(r"relay 0        a.b name='x\nINFO forged' n=1")


def test_auto_is_json_where_nobody_watches() -> None:
    assert json.loads(run("logger.info('a.b')", "auto").stderr)["event"] == "a.b"


def test_a_reader_that_stands_still_holds_nobody_up() -> None:
    """Lines beyond the queue are left out and counted; the process goes on."""
    program = (
        "import os, sys\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 2)\n"
        "for i in range(5000): logger.info('a.b', text='x' * 200)\n"
        "print('done', flush=True)\n"
        "import threading\n"
        "data = []\n"
        "def drain():\n"
        "    while chunk := os.read(reader, 65536): data.append(chunk)\n"
        "drainer = threading.Thread(target=drain)\n"
        "drainer.start()\n"
        "log.flush(20)\n"
        "logger.info('last')\n"
        "log.flush(20)\n"
        "os.close(2); os.close(writer)\n"
        "drainer.join(20)\n"
        "sys.stdout.write(b''.join(data).decode())\n"
    )
    result = run(program)
    first, *rest = result.stdout.splitlines()
    assert first == "done"
    events = [json.loads(line) for line in rest]
    dropped = sum(x["lines"] for x in events if x["event"] == "log.lines_dropped")
    assert dropped > 0
    assert sum(x["event"] == "a.b" for x in events) + dropped == 5000
    assert any(x["event"] == "last" for x in events)


def test_a_closed_stderr_ends_nobody() -> None:
    program = "import os\nos.close(2)\nlogger.info('a.b')\nlog.flush()\nprint('alive')"
    result = run(program)
    assert result.stdout == "alive\n"
    assert result.returncode == 0
