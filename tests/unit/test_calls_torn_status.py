"""A transceiver that was killed in the middle of writing a status row."""

from __future__ import annotations

from controlplane.calls import OFFER_DEADLINE_NS, Calls, NodeIdentity
from controlplane.worker_view import WorkerView
from dataplane.proto.ufrag import ClusterKeys
from dataplane.shm.enums import EndReason
from tests.support.bare_node import CHROMIUM_OFFER, bare_node

START = 1000 * 1_000_000_000


def test_its_calls_end_with_the_right_reason_and_at_once() -> None:
    with bare_node() as node:
        node.start_transceivers(START)
        calls = Calls(
            node.sessions,
            node.status,
            WorkerView(node.workers, node.state.config.transceivers),
            NodeIdentity(
                node_id=node.state.node_id,
                keys=ClusterKeys.from_text(node.state.cluster_keys),
                fingerprint_sha256=node.state.fingerprint_sha256,
                candidates=(("127.0.0.1", 3478),),
            ),
        )
        calls.recover(START)
        for at_ns in (START + 1, START + OFFER_DEADLINE_NS + 1):
            call = calls.create(CHROMIUM_OFFER, 0, b"{}", START)[0]
            life = 1 + call.slot * 2
            node.start_transceivers(at_ns, life)
            node.start_call(call.slot, life)
            node.status.region.writable_row(call.slot).sequence |= 1
            calls.tick(at_ns)
            assert not call.ended
            node.start_transceivers(at_ns, life + 1)
            calls.tick(at_ns)
            assert call.ended
            assert call.config.end_reason == EndReason.TRANSCEIVER_DIED
