"""``earshot doctor`` and the ``earshot`` command, as an operator meets them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane.workers.sockets import bind_public, port_of
from tests.support.node import ROOT, free_port, running_node


def earshot(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EARSHOT_")}
    return subprocess.run(
        [sys.executable, "-m", "controlplane.cli", *arguments],
        cwd=ROOT,
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    result = earshot("doctor", "--json", *arguments)
    assert not result.stderr
    findings = json.loads(result.stdout)["findings"]
    return result.returncode, {finding["check"]: finding for finding in findings}


@pytest.fixture
def free(tmp_path: Path) -> list[str]:
    """Flags of a node that could start here."""
    udp, tcp = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    http = f"127.0.0.1:{tcp}"
    return ["--udp-port", str(udp), "--http", http, "--run-dir", str(tmp_path / "run")]


def test_findings(free: list[str]) -> None:
    status, findings = doctor(*free)
    failures = {name for name, finding in findings.items() if finding["status"] == "failure"}
    assert status == (1 if failures else 0)
    for name in ("linux", "udp port", "http port", "C kernel", "Opus", "OpenSSL", "libsrtp"):
        assert findings[name]["status"] == "ok", findings[name]
    assert "layout version" in findings["C kernel"]["found"]
    assert "libopus" in findings["Opus"]["found"]
    for finding in findings.values():
        assert finding["found"]
        assert bool(finding["cure"]) == (finding["status"] != "ok")


def test_for_people(free: list[str]) -> None:
    result = earshot("doctor", *free)
    assert "✓ udp port" in result.stdout
    assert "\033" not in result.stdout


def test_port_of_somebody_else(free: list[str]) -> None:
    with bind_public(socket.AF_INET, 0, exclusive=True) as other:
        port = port_of(other)
        status, findings = doctor(*free, "--udp-port", str(port))
    assert status == 1
    assert findings["udp port"]["status"] == "failure"
    assert f"UDP port {port} is in use" in findings["udp port"]["cure"]


def test_port_of_our_own_node(free: list[str]) -> None:
    settings = dict(zip(free[::2], free[1::2], strict=True))
    udp, http = settings["--udp-port"], settings["--http"]
    with running_node(udp_port=udp, http=http) as node:
        ports = ["--udp-port", udp, "--http", http, "--run-dir", str(node.run_dir)]
        _, findings = doctor(*ports)
        for name in ("udp port", "http port"):
            assert findings[name]["status"] == "ok"
            assert f"supervisor pid {node.pids['supervisor']}" in findings[name]["found"]
        node.kill("supervisor")
        _, findings = doctor(*ports)
        assert "'earshot up' takes it over" in findings["udp port"]["found"]


def test_what_is_too_small_says_what_to_change(free: list[str]) -> None:
    status, findings = doctor(*free, "--max-sessions", str(1 << 20), "--relays", "64")
    assert findings["open files"]["cure"].startswith("raise the hard limit: LimitNOFILE=1048704")
    assert "--relays 1" in findings["cores"]["cure"]
    assert status == 1


def test_backends(free: list[str], tmp_path: Path) -> None:
    _, findings = doctor(*free, "--backend", f"echo={tmp_path / 'absent.sock'}")
    assert "nobody listens on" in findings["backends"]["found"]
    status, findings = doctor(*free, "--backend-command", "echo=no-such-program x")
    assert "there is no program no-such-program" in findings["backends"]["found"]
    assert status == 1


def test_unusable_configuration_is_a_finding() -> None:
    status, findings = doctor("--relays", "0")
    assert status == 1
    assert "--relays: '0'" in findings["configuration"]["found"]
    assert "linux" in findings


def test_unreadable_flags() -> None:
    result = earshot("doctor", "--relay", "2")
    assert result.returncode == 1
    assert "did you mean --relays?" in result.stderr


def test_help_and_version() -> None:
    for arguments in ([], ["--help"], ["help"]):
        result = earshot(*arguments)
        assert result.returncode == 0
        for command in ("up", "doctor", "bench", "version"):
            assert command in result.stdout
    assert earshot("version").stdout.startswith("earshot ")
    assert earshot("start").returncode == 2
    assert "start is no command" in earshot("start").stderr


def test_help_of_up_names_every_flag() -> None:
    result = earshot("up", "--help")
    assert result.returncode == 0
    for flag in ("--http", "--udp-port", "--advertise", "--relays", "--transceivers", "--backend"):
        assert flag in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--udp-port", "x"], {}, "earshot: --udp-port: 'x' cannot be used"),
        ([], {"EARSHOT_RELAYS": "65"}, "earshot: EARSHOT_RELAYS: '65' cannot be used"),
        (["--http", "[::]:8080"], {}, "openssl rand -hex 32"),
        (["--config", "/no/such.toml"], {}, "there is no such file"),
    ],
)
def test_up_refuses_with_a_message(
    arguments: list[str], environ: dict[str, str], message: str
) -> None:
    result = earshot("up", *arguments, **environ)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
