"""Structured log lines on stderr, as JSON or for people.

``setup("relay 0", ...)`` once in a process, then
``get_logger().info("flow.moved", slot=7)``. A thread of its own writes them: a
terminal that is stopped, or a full pipe, must never hold up a worker, so lines
that find the queue full are counted and left out. Not for the packet path:
packets have counters.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

# Lines that wait for a slow reader; some seconds of a worker in trouble.
QUEUE_LINES = 1024
FLUSH_SECONDS = 1.0
ROOT = "earshot"
LEVEL_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}


class Logger:
    """Events with fields, over the standard library's logging."""

    def __init__(self, inner: logging.Logger) -> None:
        self._inner = inner

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error, with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields | {"traceback": traceback.format_exc()})

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._inner.isEnabledFor(level):
            self._inner.log(level, "%s", event, extra={"event": event, "fields": fields})


def get_logger(name: str = "") -> Logger:
    return Logger(logging.getLogger(f"{ROOT}.{name}" if name else ROOT))


def setup(process: str, log_format: str = "auto", level: str = "info") -> None:
    """Sends every log line of this process to stderr, uncaught exceptions too.

    ``log_format``: json, pretty, or auto (pretty on a terminal). May be called
    again; the last call holds.
    """
    formatter: logging.Formatter
    if is_pretty(log_format):
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        formatter = PrettyFormatter(process, colour)
    else:
        formatter = JsonFormatter(process)
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, StderrHandler)]:
        root.removeHandler(old)
        old.close()
    handler = StderrHandler()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # libraries speak only when something is wrong
    logging.getLogger(ROOT).setLevel(level.upper())
    logging.raiseExceptions = False  # a closed stderr must not end a worker
    logging.captureWarnings(True)
    atexit.unregister(flush)
    atexit.register(flush)
    sys.excepthook = _log_uncaught


def is_pretty(log_format: str) -> bool:
    return log_format == "pretty" or (log_format == "auto" and sys.stderr.isatty())


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Waits until the lines so far are written, at most ``seconds``."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, StderrHandler):
            handler.wait_written(seconds)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    get_logger().error("process.crashed", error=f"{kind.__name__}: {error}", traceback=text)
    flush()


class StderrHandler(logging.Handler):
    """Formats in the caller, writes in a daemon thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str | threading.Event | None] = queue.Queue(QUEUE_LINES)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._dropped:
                line = f"{line}\n{self._note_of_dropped()}"
            self._lines.put_nowait(line)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1
        except Exception:
            self.handleError(record)

    def wait_written(self, seconds: float) -> None:
        """Returns when the lines so far are written, or after ``seconds``."""
        written = threading.Event()
        deadline = time.monotonic() + seconds
        try:
            self._lines.put(written, timeout=seconds)
        except queue.Full:
            return
        written.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        self.wait_written(FLUSH_SECONDS)
        try:
            self._lines.put_nowait(None)
            self._writer.join(FLUSH_SECONDS)
        except queue.Full:
            pass  # stderr is stuck; the daemon thread ends with the process
        super().close()

    def _note_of_dropped(self) -> str:
        fields = {"event": "log.lines_dropped", "fields": {"lines": self._dropped}}
        note = logging.LogRecord(ROOT, logging.WARNING, "", 0, "log.lines_dropped", None, None)
        note.__dict__.update(fields)
        return self.format(note)

    def _write(self) -> None:
        while (item := self._lines.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            data = item.encode("utf-8", "backslashreplace") + b"\n"
            try:
                # One write for one line: the lines of several processes share
                # a pipe, and what is under PIPE_BUF stays whole.
                while data:
                    data = data[os.write(2, data) :]
            except OSError:
                continue


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event and fields of our own lines, or of a library's."""
    event = getattr(record, "event", None)
    if event is not None:
        return event, getattr(record, "fields", {})
    fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
    if record.exc_info and record.exc_info[0] is not None:
        fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
    return "library.message", fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, process, event, then the fields."""

    RESERVED = ("ts", "level", "process", "event")

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "event": event,
        }
        for key, value in fields.items():
            line[f"{key}_" if key in self.RESERVED else key] = value
        return json.dumps(line, default=str, ensure_ascii=False)


class PrettyFormatter(logging.Formatter):
    """``12:00:00.123  relay 0  event  key=value``, tracebacks below."""

    def __init__(self, process: str, colour: bool) -> None:
        super().__init__()
        self._process = process
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        level = self._paint(f"{record.levelname.lower():<7}", LEVEL_COLOURS[record.levelname])
        pairs = [
            f"{self._paint(key + '=', '2')}{_shown(value)}"
            for key, value in fields.items()
            if key != "traceback"
        ]
        head = " ".join([self._paint(clock, "2"), level, f"{self._process:<14}", event, *pairs])
        trace = str(fields.get("traceback", "")).rstrip()
        return f"{head}\n{trace}" if trace else head

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text


def _shown(value: Any) -> str:
    """Quoted when it holds spaces or control characters (log forging)."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else repr(text)
