"""The supervisor's parts, each on its own."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import pytest

from dataplane.config import Backend, Config
from dataplane.node import NodeState
from dataplane.workers.banner import banner, talk_url
from dataplane.workers.plans import make_plans, remove_stale_socket
from dataplane.workers.processes import Backoff, find, kind_of, start_ticks
from dataplane.workers.run_dir import ProcessRecord, Records, RunDirLock, clean, prepare
from dataplane.workers.sockets import (
    BUFFER_BYTES,
    StartError,
    bind_public,
    close_sockets,
    enlarge_buffers,
    machine_addresses,
    make_sockets,
    port_of,
)

S = 1_000_000_000


def test_backoff_grows_for_those_that_die_young_and_is_forgotten() -> None:
    backoff = Backoff()
    young = [backoff.delay_ns(S) / S for _ in range(8)]
    assert young == [0, 0.25, 0.5, 1, 2, 4, 5, 5]
    for _ in range(1000):
        assert backoff.delay_ns(0) == 5 * S
    assert backoff.delay_ns(10 * S) == 0
    assert backoff.delay_ns(S) == S // 4


def test_processes_are_found_only_while_they_are_themselves() -> None:
    me = ProcessRecord("relay 0", os.getpid(), start_ticks(os.getpid()), 1, {})
    process = find(me, 0)
    assert process is not None
    assert process.is_alive()
    os.close(process.pidfd)
    recycled = ProcessRecord("relay 0", os.getpid(), me.start_ticks + 1, 1, {})
    assert find(recycled, 0) is None
    assert find(ProcessRecord("relay 0", 1 << 22, 0, 1, {}), 0) is None


def test_kinds() -> None:
    names = ["relay 3", "transceiver 0", "control plane", "backend relay"]
    assert [kind_of(name) for name in names] == ["relay", "transceiver", "control plane", "backend"]


def test_plans_cover_the_configuration() -> None:
    config = Config(
        relays=2,
        transceivers=3,
        backends=(Backend("own", "/run/o.sock", ("prog", "-x")), Backend("other", "/x.sock")),
    )
    plans = make_plans(config, Path("/run/node.json"), has_ipv6=True)
    assert list(plans) == [
        *("backend own", "transceiver 0", "transceiver 1", "transceiver 2"),
        *("relay 0", "relay 1", "control plane"),
    ]
    assert plans["backend own"].command(1, {}) == ["prog", "-x", "/run/o.sock"]
    assert plans["transceiver 2"].sockets == ("hop.2", "udp4.0", "udp6.0")
    line = plans["transceiver 2"].command(4, {"hop.2": 7, "udp4.0": 8, "udp6.0": 9})
    assert line[-12:] == [
        *("--node", "/run/node.json", "--index", "2", "--incarnation", "4"),
        *("--hop-fd", "7", "--udp4-fd", "8", "--udp6-fd", "9"),
    ]
    ipv4_only = make_plans(config, Path("/run/node.json"), has_ipv6=False)
    assert ipv4_only["relay 1"].sockets == ("udp4.1",)
    assert ipv4_only["relay 1"].command(1, {"udp4.1": 5})[-2:] == ["--udp-fds", "5"]


def test_sockets_of_a_node() -> None:
    sockets = make_sockets(Config(http=("127.0.0.1", 0), udp_port=0, relays=2, transceivers=1))
    try:
        public = [sock for name, sock in sockets.items() if name.startswith("udp")]
        assert len({port_of(sock) for sock in public}) == 1
        assert sockets["hop.0"].getsockname()[0] == "127.0.0.1"
        for sock in [*public, sockets["hop.0"]]:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 0
    finally:
        close_sockets(sockets)
    assert sockets == {}


def test_reuseport_spreads_clients_over_both_sockets() -> None:
    """The first is bound without SO_REUSEPORT and joins the group afterwards."""
    with (
        bind_public(socket.AF_INET, 0, exclusive=True) as first,
        bind_public(socket.AF_INET, port_of(first), exclusive=False) as second,
    ):
        for _ in range(64):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", port_of(first)))
        counts = [_drain(sock) for sock in (first, second)]
        assert sum(counts) == 64
        assert min(counts) > 0
        with pytest.raises(StartError, match="in use"):
            bind_public(socket.AF_INET, port_of(first), exclusive=True)


def _drain(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.recv(16)
        except BlockingIOError:
            return count
        count += 1


def test_buffers_are_large_or_said_to_be_small() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert 0 < enlarge_buffers(sock) <= BUFFER_BYTES


def test_machine_addresses() -> None:
    inside = machine_addresses(with_loopback=True)
    assert inside[0] == "127.0.0.1"
    outside = [ipaddress.ip_address(item) for item in machine_addresses(with_loopback=False)]
    assert not any(item.is_link_local for item in outside)
    assert len({item.is_loopback for item in outside}) == 1


def test_stale_socket_is_removed_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    remove_stale_socket(str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        remove_stale_socket(str(path))
        assert path.exists()
    remove_stale_socket(str(path))
    assert not path.exists()
    path.write_text("a file of somebody's")
    remove_stale_socket(str(path))
    assert path.exists()


def test_run_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    prepare(run_dir)
    assert run_dir.stat().st_mode & 0o777 == 0o700
    lock = RunDirLock(run_dir)
    with pytest.raises(StartError, match=f"supervisor pid {os.getpid()} holds"):
        RunDirLock(run_dir)
    Records("1", "boot", 1, (ProcessRecord("relay 0", 2, 3, 4, {"udp4.0": 5}),), {"x": 1}).save(
        run_dir
    )
    assert Records.load(run_dir).processes[0].sockets == {"udp4.0": 5}
    (run_dir / "mine").touch()
    clean(run_dir)
    lock.remove()
    assert [path.name for path in run_dir.iterdir()] == ["mine"]
    (run_dir / "mine").unlink()
    RunDirLock(run_dir).remove()
    assert not run_dir.exists()


def test_run_directory_without_a_parent(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="choose another with --run-dir"):
        prepare(tmp_path / "absent" / "run")


def _node(config: Config) -> NodeState:
    return NodeState(config, "00" * 16, "i", 1, "0:00", "", "", 3478, 8080, (1,), 2)


def test_banner() -> None:
    config = Config(
        advertise=("127.0.0.1", "192.0.2.1"),
        relays=1,
        backends=(Backend("echo", "/run/e.sock", ("python3", "my echo.py")),),
        run_dir="/run/earshot-3478",
    )
    text = banner(_node(config), adopted=False)
    for part in (
        "http://127.0.0.1:8080/",
        "UDP port 3478, 1 relay, 2 transceivers",
        "127.0.0.1, 192.0.2.1",
        "echo: python3 'my echo.py' /run/e.sock",
    ):
        assert part in text
    assert "microphone" not in text
    assert "--backend NAME=" in banner(_node(Config()), adopted=False)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://192.0.2.1:8080/"),
        ("::", "http://[2001:db8::1]:8080/"),
        ("::1", "http://[::1]:8080/"),
    ],
)
def test_talk_url(host: str, url: str) -> None:
    config = Config(http=(host, 8080), advertise=("2001:db8::1", "192.0.2.1"))
    assert talk_url(_node(config)) == url
