"""One transceiver in the test's own process, on real tables and sockets, and its clients.

The test is the control plane (it writes the session rows) and the relay (what comes
to the public socket goes to the hop, one record to a datagram).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.certificate import shared_certificate
from bench.offer import Answer, Candidate
from bench.peer import Peer
from dataplane.config import Backend
from dataplane.proto.address import Address
from dataplane.proto.demux import classify
from dataplane.proto.hop import HopHeader, HopRecord, encode_hop
from dataplane.proto.ufrag import ClusterKeys, Ufrag, encode_ufrag, ice_pwd
from dataplane.shm.enums import SessionState
from dataplane.shm.sessions import Ident, SessionConfig
from dataplane.workers.call import Call
from dataplane.workers.public_socket import PublicSockets
from dataplane.workers.transceiver import Transceiver
from tests.support.bare_node import BareNode, bare_node

_HOP_FLAG = {1: 1, 2: 2, 3: 4}


class LoneTransceiver:
    """Row 0 of the session table is the first call's, and so on."""

    def __init__(self, node: BareNode, backend: Path) -> None:
        config = dataclasses.replace(node.state.config, backends=(Backend("rec", str(backend)),))
        state = dataclasses.replace(node.state, config=config)
        self.node = node
        self.keys = ClusterKeys.from_text(state.cluster_keys)
        self.public = _udp_socket()
        self.hop = _udp_socket()
        self.relay = _udp_socket()
        self._records = 0
        self._routes: dict[tuple[str, int], tuple[int, int]] = {}
        self.worker = Transceiver(state, 0, 1, self.hop, PublicSockets(self.public, None))
        self._fingerprint = bytes.fromhex(state.fingerprint_sha256.replace(":", ""))

    def call(self, slot: int = 0) -> Call:
        return self.worker._calls[slot]

    def offer(self, peer: Peer, slot: int = 0, generation: int = 5, **config: Any) -> None:
        """What the control plane does with an offer of this peer."""
        defaults: dict[str, Any] = {
            "call_id": f"rtc_{slot}_{generation}",
            "remote_fingerprint": bytes.fromhex(shared_certificate().fingerprint.replace(":", "")),
            "remote_ufrag": peer.ufrag,
            "audio_payload_type": 111,
            "local_ssrc": 0xED9E,
            "remote_ssrc": peer.media.ssrc,
            "options": b"{}",
        }
        row = SessionConfig(generation=generation, **(defaults | config))
        self.node.sessions.publish(slot, Ident(SessionState.OFFERED, 0, 0, generation), row)
        self._routes[peer.sock.getsockname()[:2]] = (slot, generation)
        ufrag = encode_ufrag(Ufrag(self.keys.active, 7, 0, slot, generation), self.keys)
        host, port = self.public.getsockname()
        peer.use_answer(
            Answer(
                ufrag=ufrag,
                pwd=ice_pwd(ufrag, self.keys),
                fingerprint_algorithm="sha-256",
                fingerprint=self._fingerprint,
                setup="active" if row.dtls_active else "passive",
                payload_types=(111,),
                candidates=(Candidate(host, port, "udp"),),
                ssrc=row.local_ssrc,
                sctp_port=row.sctp_port or None,
            )
        )

    def relay_readable(self) -> None:
        """Forward what came to the public port."""
        while True:
            try:
                payload, source = self.public.recvfrom(2048)
            except BlockingIOError:
                return
            slot, generation = self._routes[source]
            client = Address.from_text(*source)
            flag = _HOP_FLAG[int(classify(payload))]
            record = HopRecord(flag, client, bytes(16), 7, slot, generation, payload)
            header = HopHeader(1, 0, 1, self._records, time.monotonic_ns())
            self._records += 1
            self.relay.sendto(encode_hop(header, [record]), self.hop.getsockname())


def _udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


@contextlib.asynccontextmanager
async def lone_transceiver(backend: Path) -> AsyncIterator[LoneTransceiver]:
    """Runs for the length of the block; every call is ended after it."""
    loop = asyncio.get_running_loop()
    with bare_node() as node:
        rig = LoneTransceiver(node, backend)
        loop.add_reader(rig.public, rig.relay_readable)
        loop.add_reader(rig.hop, rig.worker.hop_readable)
        try:
            yield rig
        finally:
            rig.worker.stop()
            loop.remove_reader(rig.public)
            loop.remove_reader(rig.hop)
            for sock in (rig.public, rig.hop, rig.relay):
                sock.close()
