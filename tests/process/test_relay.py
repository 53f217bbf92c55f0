"""A real relay worker; the test is its control plane, its transceiver and its clients."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aioice import stun

from dataplane.config import Config
from dataplane.node import NodeState, instance_of
from dataplane.proto.address import Address
from dataplane.proto.hop import HOP_NEW_FLOW, HOP_RTP, HOP_STUN, HopHeader, HopRecord, parse_hop
from dataplane.proto.ufrag import ClusterKeys, Ufrag, encode_ufrag, ice_pwd
from dataplane.shm.enums import RegionKind, SessionState, WorkerKind
from dataplane.shm.flows import FlowTable
from dataplane.shm.names import SegmentNames
from dataplane.shm.routes import RouteTable
from dataplane.shm.segment import Segment
from dataplane.shm.sessions import Ident, SessionConfig, SessionTable
from dataplane.workers.run_dir import clean
from dataplane.workers.segments import create_segments, open_worker_table
from dataplane.workers.sockets import bind_hop, bind_public, has_ipv6, port_of
from tests.support.node import ROOT, wait_until

LOOPBACK = Address.from_text("127.0.0.1", 0).ip
RTP = b"\x80\x6f" + bytes(10) + b"payload"
SLOT, GENERATION, WORKER = 5, 9, 0


class Rig:
    """One relay with everything that it touches."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.udp4 = bind_public(socket.AF_INET, 0, exclusive=True)
        self.udp6 = (
            bind_public(socket.AF_INET6, port_of(self.udp4), exclusive=True) if has_ipv6() else None
        )
        self.hop = bind_hop(0)
        self.port = port_of(self.udp4)
        self.keys = ClusterKeys({3: secrets.token_bytes(16)}, active=3)
        self.node = NodeState(
            config=Config(
                relays=1,
                transceivers=1,
                max_sessions=16,
                flows_per_relay=64,
                run_dir=str(run_dir),
                log_format="json",
            ),
            boot_id=secrets.token_hex(16),
            instance=instance_of(str(run_dir)),
            node_id=1,
            cluster_keys=self.keys.to_text(),
            certificate_pem="",
            private_key_pem="",
            udp_port=self.port,
            http_port=0,
            hop_ports=(port_of(self.hop),),
            supervisor_pid=os.getpid(),
        )
        create_segments(self.node)
        self.node.save(run_dir / "node.json")
        names = SegmentNames(self.node.instance)
        self.sessions = SessionTable(self._attach(names.sessions, RegionKind.SESSIONS))
        self.flows = FlowTable(self._attach(names.flows(0), RegionKind.FLOWS))
        RouteTable(self._attach(names.routes, RegionKind.ROUTES)).set(
            1, WORKER, LOOPBACK, port_of(self.hop)
        )
        self.workers = open_worker_table(self.node)
        self.process: subprocess.Popen[bytes] | None = None
        self.records_seen = 0

    def _attach(self, name: str, kind: RegionKind) -> Segment:
        return Segment.attach(name, kind, self.node.boot_id, writable=True)

    def start(self, incarnation: int = 1) -> None:
        fds = [sock.fileno() for sock in (self.udp4, self.udp6) if sock is not None]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dataplane.workers.relay"),
                *("--node", str(self.run_dir / "node.json"), "--index", "0"),
                *("--incarnation", str(incarnation), "--udp-fds", ",".join(map(str, fds))),
            ],
            cwd=ROOT,
            pass_fds=fds,
        )
        pid = self.process.pid
        wait_until(lambda: self._beats(pid), "the relay's heartbeat")

    def _beats(self, pid: int) -> bool:
        info = self.workers.find(WorkerKind.RELAY, 0)
        return info is not None and info.pid == pid and info.heartbeat_ns > 0

    def stop(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None:
            self.stop(signal.SIGKILL)
        for sock in (self.udp4, self.udp6, self.hop):
            if sock is not None:
                sock.close()
        clean(self.run_dir)

    # --- what the control plane does ---

    def offer(self, state: SessionState = SessionState.OFFERED) -> str:
        """A session in ``SLOT``; returns its local ufrag."""
        config = SessionConfig("rtc_test", GENERATION, bytes(32), remote_ufrag="them")
        self.sessions.publish(SLOT, Ident(SessionState.OFFERED, WORKER, 0, GENERATION), config)
        if state is not SessionState.OFFERED:
            self.sessions.set_state(SLOT, state)
        return encode_ufrag(Ufrag(3, 1, WORKER, SLOT, GENERATION), self.keys)

    def counts(self) -> dict[str, int]:
        """The counters that are not zero, but for bytes and batches."""
        info = self.workers.find(WorkerKind.RELAY, 0)
        assert info is not None
        return {
            name: n
            for name, n in info.counters.items()
            if n and name not in ("rx_bytes", "rx_batches", "hop_tx_datagrams")
        }

    def wait_received(self, datagrams: int) -> dict[str, int]:
        wait_until(
            lambda: self.counts().get("rx_datagrams", 0) >= datagrams, f"{datagrams} datagrams"
        )
        return self.counts()

    # --- what the transceiver does ---

    def records(self, count: int) -> list[tuple[HopHeader, HopRecord]]:
        """The next ``count`` records, with the header they came under."""
        found: list[tuple[HopHeader, HopRecord]] = []
        self.hop.settimeout(20)
        while len(found) < count:
            header, records = parse_hop(self.hop.recv(65536))
            found += [(header, record) for record in records]
        assert len(found) == count
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        rig.start()
        yield rig
    finally:
        rig.close()


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def check(local_ufrag: str, pwd: str) -> bytes:
    """An ICE connectivity check, as a browser sends it."""
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    request.attributes["USERNAME"] = f"{local_ufrag}:them"
    request.attributes["PRIORITY"] = 1853824767
    request.attributes["ICE-CONTROLLING"] = 7
    if pwd:
        request.add_message_integrity(pwd.encode())
        request.add_fingerprint()
    return bytes(request)


def test_check_makes_a_flow_and_rtp_follows(rig: Rig, client: socket.socket) -> None:
    ufrag = rig.offer()
    datagram = check(ufrag, ice_pwd(ufrag, rig.keys))
    client.sendto(datagram, ("127.0.0.1", rig.port))
    ((header, record),) = rig.records(1)
    assert (header.source, header.incarnation, header.record_index) == (0, 1, 0)
    assert record.flags == HOP_STUN | HOP_NEW_FLOW
    assert record.client == Address.from_text(*client.getsockname())
    assert record.local_ip == LOOPBACK
    assert (record.node_id, record.slot, record.generation) == (1, SLOT, GENERATION)
    assert record.payload == datagram
    client.sendto(RTP, ("127.0.0.1", rig.port))
    client.sendto(datagram, ("127.0.0.1", rig.port))
    (_, rtp), (_, again) = rig.records(2)
    assert (rtp.flags, rtp.payload) == (HOP_RTP, RTP)
    assert again.flags == HOP_STUN
    assert rig.wait_received(3) == {
        "rx_datagrams": 3,
        "forwarded": 3,
        "slow_path": 1,
        "flows_installed": 1,
    }


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6_client(rig: Rig) -> None:
    ufrag = rig.offer()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.bind(("::1", 0))
        client.sendto(check(ufrag, ice_pwd(ufrag, rig.keys)), ("::1", rig.port))
        ((_, record),) = rig.records(1)
        assert record.client == Address.from_text("::1", client.getsockname()[1])
        assert record.local_ip == Address.from_text("::1", 0).ip


@pytest.mark.parametrize("pwd", ["", "x" * 24])
def test_check_without_proof_makes_no_flow(rig: Rig, client: socket.socket, pwd: str) -> None:
    ufrag = rig.offer()
    client.sendto(check(ufrag, pwd), ("127.0.0.1", rig.port))
    client.sendto(RTP, ("127.0.0.1", rig.port))
    assert rig.wait_received(2) == {
        "rx_datagrams": 2,
        "slow_path": 1,
        "drop_stun_bad_integrity": 1,
        "drop_unknown_flow": 1,
    }
    assert list(rig.flows.items()) == []


def test_known_client_cannot_move_to_another_session_without_proof(
    rig: Rig, client: socket.socket
) -> None:
    ufrag = rig.offer()
    client.sendto(check(ufrag, ice_pwd(ufrag, rig.keys)), ("127.0.0.1", rig.port))
    rig.records(1)
    other = encode_ufrag(Ufrag(3, 1, WORKER, SLOT + 1, 4), rig.keys)
    config = SessionConfig("rtc_other", 4, bytes(32))
    rig.sessions.publish(SLOT + 1, Ident(SessionState.OFFERED, WORKER, 0, 4), config)
    client.sendto(check(other, ice_pwd(ufrag, rig.keys)), ("127.0.0.1", rig.port))
    assert rig.wait_received(2)["drop_stun_bad_integrity"] == 1
    assert [flow.slot for flow in rig.flows.items()] == [SLOT]


def test_foreign_and_stale_ufrags_never_reach_python(rig: Rig, client: socket.socket) -> None:
    rig.offer()
    stale = encode_ufrag(Ufrag(3, 1, WORKER, SLOT, GENERATION - 1), rig.keys)
    foreign = encode_ufrag(
        Ufrag(3, 1, WORKER, SLOT, GENERATION), ClusterKeys({3: bytes(16)}, active=3)
    )
    for ufrag in (stale, foreign):
        client.sendto(check(ufrag, "x" * 24), ("127.0.0.1", rig.port))
    assert rig.wait_received(2) == {
        "rx_datagrams": 2,
        "drop_stun_stale_generation": 1,
        "drop_stun_foreign_ufrag": 1,
    }


def test_ended_session_hears_checks_and_nothing_else(rig: Rig, client: socket.socket) -> None:
    ufrag = rig.offer()
    datagram = check(ufrag, ice_pwd(ufrag, rig.keys))
    client.sendto(datagram, ("127.0.0.1", rig.port))
    rig.records(1)
    rig.sessions.set_state(SLOT, SessionState.ENDED)
    client.sendto(RTP, ("127.0.0.1", rig.port))
    client.sendto(datagram, ("127.0.0.1", rig.port))
    ((_, record),) = rig.records(1)
    assert record.flags == HOP_STUN
    assert rig.wait_received(3)["drop_stale_flow"] == 1


def test_successor_of_a_killed_relay_loses_nothing(rig: Rig, client: socket.socket) -> None:
    """Flows stand in shared memory, and what came meanwhile in the socket."""
    ufrag = rig.offer()
    client.sendto(check(ufrag, ice_pwd(ufrag, rig.keys)), ("127.0.0.1", rig.port))
    rig.records(1)
    rig.wait_received(1)  # the record leaves a moment before its count is written
    assert rig.stop(signal.SIGKILL) == -signal.SIGKILL
    for i in range(100):
        client.sendto(RTP + bytes([i]), ("127.0.0.1", rig.port))
    rig.start(incarnation=2)
    records = rig.records(100)
    assert [record.payload[-1] for _, record in records] == list(range(100))
    assert {header.incarnation for header, _ in records} == {2}
    counts = rig.wait_received(101)
    assert (counts["rx_datagrams"], counts["forwarded"]) == (101, 101)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_polite_stop(rig: Rig, number: signal.Signals) -> None:
    assert rig.stop(number) == 0


def test_no_descriptor_of_the_workers_is_lost_on_them(rig: Rig) -> None:
    """stdin, stdout, stderr, the public sockets, the hop's, and no segment's."""
    assert rig.process is not None
    links = {
        os.readlink(path)
        for path in Path(f"/proc/{rig.process.pid}/fd").iterdir()
        if path.name not in ("0", "1", "2")
    }
    assert sum(link.startswith("socket:") for link in links) == (3 if has_ipv6() else 2)
