"""Starts the servers under test as subprocesses and ends them again.

Both speak the same HTTP face, so a Peer calls either in the same way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class StartError(Exception):
    """A server under test did not come up; the message holds what it said."""


@dataclass
class Server:
    """A running server: where it takes offers, and which processes do its media."""

    base_url: str
    media_pids: tuple[int, ...]
    """The processes whose CPU time a call costs on the server's side."""
    full_ice: bool = False
    """It wants candidates in the offer."""
    counters: Callable[[], dict[str, int]] = field(default=dict)


@contextlib.contextmanager
def run_earshot(
    *,
    relays: int = 1,
    transceivers: int = 1,
    echo: Sequence[str],
    complexity: int = 5,
) -> Iterator[Server]:
    """A whole node on loopback and free ports with one backend named ``echo``.

    echo: the backend's command, to which the socket's path is added. Raises
    StartError.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="earshot-bench-"))
        socket_path = f"{directory}/echo.sock"
        stack.enter_context(_process([*echo, socket_path], Path(directory, "echo.log")))
        run_dir = Path(directory, "run")
        node = stack.enter_context(
            _process(
                [
                    *(sys.executable, "-m", "dataplane.workers.supervisor"),
                    *("--http", "127.0.0.1:0", "--udp-port", "0", "--advertise", "127.0.0.1"),
                    *("--relays", str(relays), "--transceivers", str(transceivers)),
                    *("--backend", f"echo={socket_path}", "--run-dir", str(run_dir)),
                    *("--opus-complexity", str(complexity), "--log-format", "json"),
                ],
                Path(directory, "node.log"),
            )
        )
        base_url = _await_node(node, run_dir / "node.json", Path(directory, "node.log"))
        _await(lambda: Path(socket_path).exists(), "the echo backend does not listen")
        workers = get_workers(base_url)
        pids = tuple(w["pid"] for w in workers if w["kind"] == "transceiver")
        yield Server(base_url, pids, counters=lambda: transceiver_counters(base_url))


@contextlib.contextmanager
def run_aiortc_echo() -> Iterator[Server]:
    """aiortc's echo server in a process of its own. Raises StartError."""
    with tempfile.TemporaryDirectory(prefix="earshot-bench-") as directory:
        port_file = Path(directory, "port")
        log = Path(directory, "log")
        script = Path(__file__).parent / "peers" / "aiortc_echo.py"
        with _process([sys.executable, str(script), str(port_file)], log) as process:
            _await(port_file.exists, "aiortc's echo server does not start", process, log)
            base_url = f"http://127.0.0.1:{port_file.read_text()}"
            yield Server(base_url, (process.pid,), full_ice=True)


def get_workers(base_url: str) -> list[dict[str, Any]]:
    """The node's processes as the admin API tells of them."""
    with urllib.request.urlopen(f"{base_url}/admin/v1/workers", timeout=5) as response:
        document = json.load(response)
    workers: list[dict[str, Any]] = document["workers"]
    return workers


def transceiver_counters(base_url: str) -> dict[str, int]:
    """Counters summed over the node's transceivers; empty where the API has none."""
    totals: dict[str, int] = {}
    for worker in get_workers(base_url):
        if worker["kind"] == "transceiver":
            for name, value in worker.get("counters", {}).items():
                totals[name] = totals.get(name, 0) + value
    return totals


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A subprocess with its output in a file, asked to stop at the end and then made to."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EARSHOT_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(
    condition: Callable[[], bool],
    complaint: str,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> None:
    """Polls until the condition holds; StartError after START_TIMEOUT_S or on an early exit."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        exited = process is not None and process.poll() is not None
        if exited or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:] if log else ""
            raise StartError(f"{complaint}\n{said}")
        time.sleep(0.02)


def _await_node(process: subprocess.Popen[bytes], node_file: Path, log: Path) -> str:
    """Waits for a healthy control plane and returns its base URL."""
    complaint = "the node does not come up"
    _await(node_file.exists, complaint, process, log)
    base_url = f"http://127.0.0.1:{json.loads(node_file.read_text())['http_port']}"

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"{base_url}/healthz", timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    _await(healthy, complaint, process, log)
    return base_url
