"""One relay worker alone: its sockets, shared memory and sessions, and a sink for its hop.

The rig plays the supervisor and the control plane: it makes the node's
segments, publishes one session per flow, routes them all to the sink, starts
the real worker program and authenticates every flow with a STUN check.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.binding_check import encode_check
from bench.flows import Sink, open_flows
from dataplane.config import Config
from dataplane.launch import python_module
from dataplane.node import NodeState, instance_of
from dataplane.proto.address import Address
from dataplane.proto.ufrag import ClusterKeys, Ufrag, encode_ufrag, ice_pwd
from dataplane.shm.enums import RegionKind, SessionState
from dataplane.shm.names import SegmentNames
from dataplane.shm.routes import RouteTable
from dataplane.shm.segment import Segment, unlink
from dataplane.shm.sessions import Ident, SessionConfig, SessionTable
from dataplane.workers.segments import create_segments
from dataplane.workers.sockets import bind_public, port_of

NODE_ID = 1
GENERATION = 1
READY_TIMEOUT_S = 20.0
CHECKS_PER_PAUSE = 32  # what the relay's slow path takes at once


class RigError(Exception):
    """The relay did not come up or did not take the flows."""


@dataclass(frozen=True)
class RelayProcess:
    """A relay worker with authenticated flows."""

    pid: int
    flows: Sequence[socket.socket]


@contextlib.contextmanager
def run_relay(sink: Sink, flow_count: int) -> Iterator[RelayProcess]:
    """Starts the worker and authenticates flow_count flows. RigError when it does not take them."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="earshot-bench-"))
        public = stack.enter_context(bind_public(socket.AF_INET, 0, exclusive=True))
        node = _node_state(directory, port_of(public), sink.address[1], flow_count)
        node.save(Path(directory, "node.json"))
        for name in SegmentNames(node.instance).all(relays=1):
            stack.callback(unlink, name)
        create_segments(node)
        keys = ClusterKeys.from_text(node.cluster_keys)
        stack.callback(_publish(node, sink.address[1], flow_count).close)
        process = subprocess.Popen(
            [
                *python_module("dataplane.workers.relay"),
                *("--node", str(Path(directory, "node.json")), "--index", "0"),
                *("--incarnation", "1", "--udp-fds", str(public.fileno())),
            ],
            pass_fds=(public.fileno(),),
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        flows = stack.enter_context(open_flows(flow_count, "127.0.0.1", node.udp_port))
        _authenticate(flows, keys, sink)
        yield RelayProcess(process.pid, flows)


def _node_state(directory: str, udp_port: int, hop_port: int, flow_count: int) -> NodeState:
    config = Config(
        relays=1,
        transceivers=1,
        max_sessions=max(16, flow_count),
        # The default, and never so full that a bucket must give up a row.
        flows_per_relay=max(Config.flows_per_relay, 1 << (4 * flow_count - 1).bit_length()),
        run_dir=directory,
        log_level="warning",
    )
    return NodeState(
        config=config,
        boot_id=secrets.token_hex(16),
        instance=instance_of(directory),
        node_id=NODE_ID,
        cluster_keys=f"0:{secrets.token_hex(16)}",
        certificate_pem="",
        private_key_pem="",
        udp_port=udp_port,
        http_port=0,
        hop_ports=(hop_port,),
        supervisor_pid=0,
    )


def _publish(node: NodeState, hop_port: int, flow_count: int) -> Segment:
    """A live session in every slot, and the route to the sink. Returns what to close."""
    names, boot_id = SegmentNames(node.instance), bytes.fromhex(node.boot_id)
    routes = Segment.attach(names.routes, RegionKind.ROUTES, boot_id, writable=True)
    RouteTable(routes).set(NODE_ID, 0, Address.from_text("127.0.0.1", hop_port).ip, hop_port)
    routes.close()
    segment = Segment.attach(names.sessions, RegionKind.SESSIONS, boot_id, writable=True)
    table = SessionTable(segment)
    ident = Ident(SessionState.OFFERED, 0, 0, GENERATION)
    for slot in range(flow_count):
        table.publish(slot, ident, SessionConfig(f"rtc_{slot}", GENERATION, bytes(32)))
    return segment


def _authenticate(flows: Sequence[socket.socket], keys: ClusterKeys, sink: Sink) -> None:
    """Sends each flow's check until the sink has seen one of every flow."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    _datagrams, seen = sink.totals()
    wanted = seen + len(flows)
    for slot, flow in enumerate(flows):
        ufrag = encode_ufrag(Ufrag(keys.active, NODE_ID, 0, slot, GENERATION), keys)
        check = encode_check(f"{ufrag}:peer", ice_pwd(ufrag, keys), tie_breaker=slot)
        flow.send(check)
        # A check that is lost would be missed below; so never more than the relay queues.
        while slot % CHECKS_PER_PAUSE == 0 and sink.totals()[1] < wanted - len(flows) + slot + 1:
            if time.monotonic() > deadline:
                raise RigError(f"the relay forwarded no check of flow {slot}")
            time.sleep(0.005)
    while sink.totals()[1] < wanted:
        if time.monotonic() > deadline:
            raise RigError(f"{wanted - sink.totals()[1]} of {len(flows)} flows were not taken")
        time.sleep(0.005)
