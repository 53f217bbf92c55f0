"""The supervisor is killed, and the next one takes over, or replaces cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import pytest

from dataplane.workers.processes import start_ticks
from tests.process.test_supervisor import SMALL, inodes
from tests.support.node import ECHO, Node, running_node, wait_until


def worker_pids(node: Node) -> dict[str, int]:
    return {name: pid for name, pid in node.pids.items() if name != "supervisor"}


def test_workers_go_on_and_are_adopted() -> None:
    with running_node(backend_commands={"echo": ECHO}) as node:
        pids, sockets, boot_id = worker_pids(node), inodes(node), node.state.boot_id
        node.kill("supervisor")
        assert node.processes().keys() == set(pids.values())
        node.up()
        assert worker_pids(node) == pids
        assert node.state.boot_id == boot_id
        assert node.state.supervisor_pid == node.pids["supervisor"]
        (adopted,) = node.events("node.adopted")
        assert (adopted["processes"], adopted["missing"]) == (pids, [])
        assert node.events("node.up")[-1]["adopted"]
        # It watches them, and can start them again on the very same sockets.
        for name in ("relay 0", "transceiver 1", "control plane", "backend echo"):
            node.wait_restarted(name, node.kill(name))
            assert node.incarnations[name] == 2
        assert inodes(node) == sockets
        # And so can its successor.
        pids = worker_pids(node)
        node.kill("supervisor")
        node.up()
        assert worker_pids(node) == pids
        node.stop()


@pytest.mark.parametrize("name", ["relay 0", "transceiver 0", "control plane"])
def test_missing_worker_is_started(name: str) -> None:
    """The socket of a relay lives on in a transceiver; a listener or a hop
    socket that nobody holds any more is made again on the same port."""
    with running_node() as node:
        pids, state = worker_pids(node), node.state
        node.kill("supervisor")
        os.kill(pids[name], signal.SIGKILL)
        node.up()
        assert {n for n, pid in worker_pids(node).items() if pid != pids[n]} == {name}
        assert node.incarnations[name] == 2
        assert node.state.udp_port == state.udp_port
        assert node.state.http_port == state.http_port
        assert node.state.hop_ports == state.hop_ports
        (adopted,) = node.events("node.adopted")
        assert adopted["missing"] == [name]
        lost = [line["socket"] for line in node.events("socket.lost")]
        kept_elsewhere = name.startswith("relay")
        assert lost == ([] if kept_elsewhere else [_own_socket(name)])


def _own_socket(name: str) -> str:
    return "http" if name == "control plane" else f"hop.{name[-1]}"


def test_changed_configuration_replaces() -> None:
    with running_node(**SMALL) as node:
        pids, boot_id = worker_pids(node), node.state.boot_id
        node.kill("supervisor")
        node.up("--max-wait-ms", "90")
        assert not set(worker_pids(node).values()) & set(pids.values())
        assert node.state.boot_id != boot_id
        (replaced,) = node.events("node.replaced")
        assert replaced["reason"] == "the configuration differs in max_wait_ms"
        assert replaced["stopping"] == pids
        running = set(node.pids.values())
        assert node.processes().keys() == running


def test_what_only_the_control_plane_reads_is_adopted() -> None:
    with running_node(**SMALL) as node:
        pids = worker_pids(node)
        node.kill("supervisor")
        node.up("--advertise", "192.0.2.9")
        node.wait_restarted("control plane", pids["control plane"])
        assert {n for n, pid in worker_pids(node).items() if pid != pids[n]} == {"control plane"}
        assert node.state.config.advertise == ("192.0.2.9",)


def test_dead_instance_is_cleaned() -> None:
    with running_node(**SMALL) as node:
        boot_id, pids = node.state.boot_id, worker_pids(node)
        node.kill("supervisor")
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        node.up()
        assert node.events("node.cleaned")[0]["reason"] == "its processes are gone"
        assert node.state.boot_id != boot_id
        assert len(node.segments()) == 5


def test_shared_memory_that_is_gone_replaces() -> None:
    with running_node(**SMALL) as node:
        node.kill("supervisor")
        node.segments()[0].unlink()
        node.up()
        assert node.segments()[0].name in node.events("node.replaced")[0]["reason"]


def test_recycled_pid_is_never_signalled() -> None:
    """processes.json names a pid that is somebody else's by now."""
    with running_node(**SMALL) as node, subprocess.Popen(["sleep", "1000"]) as stranger:
        node.kill("supervisor")
        for pid in worker_pids(node).values():
            os.kill(pid, signal.SIGKILL)
        path = node.run_dir / "processes.json"
        values = json.loads(path.read_text())
        for process in values["processes"]:
            process["pid"] = stranger.pid
            assert process["start_ticks"] != start_ticks(stranger.pid)
        path.write_text(json.dumps(values))
        node.up("--max-wait-ms", "90")
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("name", ["node.json", "processes.json"])
def test_mangled_file_replaces_or_says_why_not(name: str) -> None:
    """Without processes.json nobody may be stopped: then the ports stay taken."""
    with running_node(**SMALL) as node:
        port = node.udp_port
        node.kill("supervisor")
        (node.run_dir / name).write_text("{")
        node.up("--udp-port", str(port), wait=False)
        if name == "node.json":
            node.wait_healthy()
            assert name in node.events("node.replaced")[0]["reason"]
        else:
            assert node.wait_ended() == 1
            assert f"UDP port {port} is in use" in node.logs


def test_datagrams_sent_while_nobody_supervises_are_kept() -> None:
    """The public socket's queue outlives relay and supervisor together."""
    with running_node(relays=1, transceivers=1) as node:
        port = node.udp_port
        node.kill("relay 0", signal.SIGSTOP)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(100):
                client.sendto(b"\xff not of any protocol", ("127.0.0.1", port))
        node.kill("supervisor")
        node.kill("relay 0")
        node.up()
        wait_until(lambda: node.counters("relay 0")["rx_datagrams"] == 100, "100 datagrams")
        assert node.counters("relay 0")["drop_demux"] == 100
