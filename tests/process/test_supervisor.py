"""A real node starts, heals and stops: nothing missing, nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.support.node import ECHO, Node, free_port, running_node, wait_until

WORKERS = ["relay 0", "relay 1", "transceiver 0", "transceiver 1", "control plane"]

# A quicker start, for tests that need not two of each.
SMALL = {"relays": 1, "transceivers": 1}


def inodes(node: Node) -> dict[str, str]:
    """Each named socket's inode: the same one through any restart."""
    return {
        name: os.readlink(f"/proc/{record.pid}/fd/{fd}")
        for record in node.records.processes
        for name, fd in record.sockets.items()
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop_leaves_nothing(number: signal.Signals) -> None:
    with running_node(backend_commands={"echo": ECHO}) as node:
        assert set(node.pids) == {*WORKERS, "backend echo", "supervisor"}
        assert len(node.segments()) == 6
        assert node.run_dir.stat().st_mode & 0o777 == 0o700
        port = node.udp_port
        node.stop(number)
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((host, port))


def test_second_signal_does_not_wait_for_one_that_hangs() -> None:
    with running_node(**SMALL) as node:
        node.kill("transceiver 0", signal.SIGSTOP)
        node.kill("supervisor", signal.SIGTERM)
        wait_until(lambda: node.events("node.stopping"), "node.stopping")
        node.stop()
        (stopped,) = node.events("node.stopped")
        assert stopped["ends"]["transceiver 0"] == "SIGKILL"


def test_titles_name_every_process() -> None:
    with running_node() as node:
        titles = node.processes()
        for name, pid in node.pids.items():
            assert titles[pid] == f"earshot {name}"


def test_up_event_says_where_everything_is() -> None:
    with running_node(**SMALL, backend_commands={"echo": ECHO}) as node:
        (up,) = node.events("node.up")
        assert up["udp_port"] == node.udp_port
        assert up["url"] == node.http_url + "/"
        assert up["advertise"][0] == "127.0.0.1"
        assert up["backends"] == {"echo": str(node.run_dir / "echo.sock")}
        assert up["pids"].keys() | {"supervisor"} == node.pids.keys()


@pytest.mark.parametrize("name", ["relay 1", "transceiver 0", "control plane", "backend echo"])
def test_killed_process_is_restarted(name: str) -> None:
    with running_node(backend_commands={"echo": ECHO}) as node:
        before, sockets, lives = node.pids, inodes(node), node.incarnations
        node.wait_restarted(name, node.kill(name))
        after = node.pids
        assert {n for n in after if after[n] != before[n]} == {name}
        assert inodes(node) == sockets
        assert node.incarnations == lives | {name: lives[name] + 1}
        (death,) = node.events("process.died")
        assert (death["name"], death["end"], death["again_in_ms"]) == (name, "SIGKILL", 0)


def test_all_workers_killed_at_once() -> None:
    with running_node() as node:
        sockets = inodes(node)
        old = {name: node.kill(name) for name in WORKERS}
        for name, pid in old.items():
            node.wait_restarted(name, pid)
        assert inodes(node) == sockets


def test_backend_that_cannot_start_is_tried_with_back_off() -> None:
    command = f"{shlex.quote(sys.executable)} -c 'import nothing_of_this_name'"
    with running_node(**SMALL, backend_commands={"bad": command}) as node:

        def delays() -> list[int]:
            return [death["again_in_ms"] for death in node.events("process.died")]

        wait_until(lambda: len(delays()) >= 4, "four deaths")
        assert delays()[:4] == [0, 250, 500, 1000]
        assert "No module named 'nothing_of_this_name'" in node.logs
        assert node.events("backend.not_listening")[0]["not_up"] == ["backend bad"]


def test_command_that_does_not_exist() -> None:
    with running_node(**SMALL, backend_commands={"bad": "/no/such/program"}) as node:
        assert "No such file" in node.events("process.not_started")[0]["error"]


def test_processes_a_backend_started_go_with_it() -> None:
    """A shell that starts the backend, and something else that it forgets."""
    script = f"sleep 1000 & {ECHO} $0"
    with running_node(**SMALL, backend_commands={"echo": f"sh -c {shlex.quote(script)}"}) as node:
        wait_until(lambda: "sleep 1000" in node.processes().values(), "sleep")
        node.stop()


def test_secrets_stay_with_us(tmp_path: Path) -> None:
    """A backend is somebody else's program."""
    script = tmp_path / "env.py"
    script.write_text(
        "import json, os, sys, time\n"
        "print(json.dumps(dict(os.environ)), file=open(sys.argv[1] + '.env', 'w'), flush=True)\n"
        "time.sleep(1000)\n"
    )
    environ = {"EARSHOT_API_KEY": "k" * 32, "EARSHOT_CLUSTER_KEYS": "2:" + "ab" * 16, "TZ": "UTC"}
    command = f"{sys.executable} {script}"
    with running_node(**SMALL, backend_commands={"env": command}, environ=environ) as node:
        path = node.run_dir / "env.sock.env"
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), "environment")
        seen = json.loads(path.read_text())
        path.unlink()
        assert seen["TZ"] == "UTC"
        assert not {name for name in seen if name.startswith("EARSHOT_")}
        assert node.state.cluster_keys == "2:" + "ab" * 16


def test_udp_port_in_use() -> None:
    """Also by one that would share it with us through SO_REUSEPORT."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with running_node(**SMALL, udp_port=port, start=False) as node:
            node.up(wait=False)
            assert node.wait_ended() == 1
            (refusal,) = node.events("node.not_started")
            assert f"UDP port {port} is in use" in refusal["reason"]
            assert "--udp-port" in refusal["reason"]
            node.assert_nothing_left()


def test_http_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with running_node(**SMALL, http=f"127.0.0.1:{port}", start=False) as node:
            node.up(wait=False)
            assert node.wait_ended() == 1
            (refusal,) = node.events("node.not_started")
            assert f"TCP port {port} is in use" in refusal["reason"]
            node.assert_nothing_left()


def test_public_http_without_a_key_is_refused() -> None:
    with running_node(http="0.0.0.0:0", start=False) as node:
        node.up(wait=False)
        assert node.wait_ended() == 1
        assert "export EARSHOT_API_KEY=$(openssl rand -hex 32)" in node.logs
        node.assert_nothing_left()


def test_run_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with running_node(run_dir=tmp_path / "link", start=False) as node:
        node.up(wait=False)
        assert node.wait_ended() == 1
        assert "is not a directory of ours" in node.logs


def test_second_supervisor_is_refused() -> None:
    with running_node(**SMALL) as node:
        pids = node.pids
        second = Node(node.base, node._flags, {})
        second.up(wait=False)
        assert second.wait_ended() == 1
        (refusal,) = node.events("node.not_started")
        assert f"supervisor pid {pids['supervisor']}" in refusal["reason"]
        assert node.pids == pids
        node.wait_restarted("relay 0", node.kill("relay 0"))


def test_two_nodes_side_by_side() -> None:
    with running_node(relays=1, transceivers=1) as one, running_node(relays=1) as other:
        assert one.udp_port != other.udp_port
        assert not set(one.segments()) & set(other.segments())
        one.stop()
        assert len(other.segments()) == 5
        assert other.pids.keys() == set(WORKERS) - {"relay 1"} | {"supervisor"}


def test_fixed_ports() -> None:
    udp, tcp = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    with running_node(udp_port=udp, http=f"127.0.0.1:{tcp}") as node:
        assert (node.udp_port, node.http_url) == (udp, f"http://127.0.0.1:{tcp}")
