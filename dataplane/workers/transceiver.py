"""The transceiver worker: owns its calls, from the first authenticated check to the end.

One loop. Hop datagrams come in from the relays; each record goes to the call
that its slot and generation name. A record that names no call of ours may start
one, if it is a STUN check that proves itself; then the call's row in the session
table says everything else. Answers leave from the public sockets directly.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
import time

from setproctitle import setproctitle

from dataplane.log import get_logger, setup
from dataplane.node import NodeState
from dataplane.proto import ice_lite, stun
from dataplane.proto.demux import Demux
from dataplane.proto.errors import BadPacket
from dataplane.proto.hop import HopHeader, HopRecord, parse_hop
from dataplane.proto.media_session import MediaSession, SessionParameters, State
from dataplane.proto.ufrag import ClusterKeys, ice_pwd, parse_ufrag
from dataplane.shm.enums import (
    Counter,
    EndReason,
    FingerprintAlgorithm,
    HopFlag,
    RegionKind,
    SessionState,
    WorkerKind,
)
from dataplane.shm.names import SegmentNames
from dataplane.shm.segment import Segment
from dataplane.shm.sessions import SessionConfig, SessionTable
from dataplane.shm.status import StatusTable
from dataplane.shm.workers import WorkerTable
from dataplane.workers.call import Call
from dataplane.workers.call_status import CallStatus
from dataplane.workers.public_socket import PublicSockets
from dataplane.workers.timers import Timers

log = get_logger()

HOP_DATAGRAM_BYTES = 65536
HOP_READS_PER_WAKEUP = 16
"""Between them, timers and backends get their turn."""
SWEEP_S = 0.02
"""How soon a hang-up in the session table is seen."""
HEARTBEAT_NS = 500_000_000
STALL_NS = 500_000_000
"""After standing still for so long, first see which calls are still ours: the control plane gives
the slot of a call away a second after it has seen its end, at the earliest."""
PLAYOUT_LATE_NS = 5_000_000
REFUSALS_PER_HEARTBEAT = 100

_ALGORITHM_TEXT = {
    FingerprintAlgorithm.SHA256: "sha-256",
    FingerprintAlgorithm.SHA384: "sha-384",
    FingerprintAlgorithm.SHA512: "sha-512",
}


class Transceiver:
    """See the module's docstring."""

    def __init__(
        self,
        node: NodeState,
        index: int,
        incarnation: int,
        hop: socket.socket,
        sockets: PublicSockets,
    ) -> None:
        self._node = node
        self._index = index
        self._incarnation = incarnation
        self._hop = hop
        self._sockets = sockets
        self._keys = ClusterKeys.from_text(node.cluster_keys)
        names = SegmentNames(node.instance)
        boot_id = bytes.fromhex(node.boot_id)
        self._table = SessionTable(
            Segment.attach(names.sessions, RegionKind.SESSIONS, boot_id, writable=False)
        )
        self._status = StatusTable(
            Segment.attach(names.status, RegionKind.STATUS, boot_id, writable=True)
        )
        workers = WorkerTable(
            Segment.attach(names.workers, RegionKind.WORKERS, boot_id, writable=True)
        )
        self._row = workers.open_row(WorkerKind.TRANSCEIVER, index, incarnation)
        self._calls: dict[int, Call] = {}
        self._records_seen: dict[tuple[int, int], int] = {}
        self._refusals_left = REFUSALS_PER_HEARTBEAT
        self._heartbeat_ns = 0
        self._swept_ns = time.monotonic_ns()
        self._timers: Timers[Call] = Timers(self._fire)
        self._relay = 0

    # --- Edge, for the calls ---

    def transmit(self, call: Call) -> None:
        """Send what the session has ready."""
        self._send_all(call.session)

    def _send_all(self, session: MediaSession) -> None:
        for t in session.poll_transmit():
            if self._sockets.send(t.datagram, t.client, t.local_ip):
                self._row.count(Counter.TX_DATAGRAMS)
                self._row.count(Counter.TX_BYTES, len(t.datagram))
            else:
                self._row.count(Counter.TX_ERRORS)

    def reschedule(self, call: Call) -> None:
        self._timers.schedule(call)

    def call_ended(self, call: Call) -> None:
        if self._calls.get(call.slot) is call:
            del self._calls[call.slot]
        self._timers.forget(call)

    def count(self, counter: Counter, n: int = 1) -> None:
        self._row.count(counter, n)

    # --- the hop ---

    def hop_readable(self) -> None:
        """Handle a bounded number of hop datagrams."""
        self._sweep_after_stall(time.monotonic_ns())
        for _ in range(HOP_READS_PER_WAKEUP):
            try:
                datagram = self._hop.recv(HOP_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            self._row.count(Counter.HOP_RX_DATAGRAMS)
            try:
                header, records = parse_hop(datagram)
            except BadPacket as bad:
                self._drop(bad)
                continue
            self._account(header)
            now_ns = time.monotonic_ns()
            for record in records:
                self._handle_record(record, header.t_recv_ns, now_ns)

    def _account(self, header: HopHeader) -> None:
        """Count records that the relay sent and we never saw."""
        self._relay = header.source
        self._row.count(Counter.HOP_RX_RECORDS, header.count)
        stream = (header.source, header.incarnation)
        expected = self._records_seen.get(stream)
        if expected is None:
            # Another life of the relay counts anew.
            self._records_seen = {
                s: n for s, n in self._records_seen.items() if s[0] != header.source
            }
        elif header.record_index > expected:
            self._row.count(Counter.HOP_RECORDS_LOST, header.record_index - expected)
        self._records_seen[stream] = header.record_index + header.count

    def _handle_record(self, record: HopRecord, arrival_ns: int, now_ns: int) -> None:
        call = self._calls.get(record.slot)
        if call is not None and call.generation != record.generation:
            call = None
        try:
            if call is None:
                self._start_call(record, arrival_ns, now_ns)
            else:
                call.handle_record(record, _kind(record), arrival_ns, now_ns)
                call.status.refresh(call.session, self._relay, now_ns)
        except BadPacket as bad:
            self._drop(bad)
            if call is not None:
                call.status.drop()
        except Exception:
            self._row.count(Counter.DROP_RECORD_INTERNAL_ERROR)
            self.broken(call)
        else:
            self._row.count(Counter.RECORDS_HANDLED)

    def _fire(self, call: Call, now_ns: int) -> None:
        self._sweep_after_stall(now_ns)
        try:
            call.handle_timer(now_ns)
            call.status.refresh(call.session, self._relay, now_ns)
            self._count_playout(call)
        except Exception:
            self.broken(call)

    def _count_playout(self, call: Call) -> None:
        downlink = call.session.downlink
        if downlink is None:
            return
        lateness_ns, downlink.frame_lateness_ns = downlink.frame_lateness_ns, []
        if lateness_ns:
            self._row.count(Counter.PLAYOUT_FRAMES, len(lateness_ns))
            late = sum(ns > PLAYOUT_LATE_NS for ns in lateness_ns)
            self._row.count(Counter.PLAYOUT_LATE, late)
            call.status.playout_lateness(lateness_ns[-1])

    def broken(self, call: Call | None) -> None:
        """A bug of ours met one call: that call ends, the others go on."""
        log.exception("call.internal_error", call=call.call_id if call else "")
        if call is not None:
            call.end_broken("internal error; see the log")

    def _drop(self, bad: BadPacket) -> None:
        self._row.count(Counter[bad.reason.upper()])

    # --- starting and refusing calls ---

    def _start_call(self, record: HopRecord, arrival_ns: int, now_ns: int) -> None:
        """A record for no call of ours. Raises BadPacket unless it is a check that
        starts a call, or a check of an ended one that is refused."""
        ident = self._table.ident(record.slot) if record.slot < self._table.row_count else None
        if ident is None or ident.state is SessionState.FREE:
            raise BadPacket("drop_record_no_session")
        if ident.generation != record.generation:
            raise BadPacket("drop_record_stale_generation")
        if ident.worker != self._index or not record.flags & HopFlag.STUN:
            raise BadPacket("drop_record_no_session")
        request = stun.parse_binding_request(record.payload)
        ufrag = parse_ufrag(request.local_ufrag.encode(), self._keys)
        if (ufrag.slot, ufrag.generation) != (record.slot, record.generation):
            raise BadPacket("drop_session_stun_bad_username")
        started = self._status.glance(record.slot).generation == record.generation
        if started or ident.state is not SessionState.OFFERED:
            self._refuse(record, request.local_ufrag)
            return
        snapshot = self._table.read(record.slot)
        if snapshot is None or snapshot[0].generation != record.generation:
            raise BadPacket("drop_record_no_session")
        self._create(record, snapshot[1], request.local_ufrag, arrival_ns, now_ns)

    def _create(
        self,
        record: HopRecord,
        config: SessionConfig,
        local_ufrag: str,
        arrival_ns: int,
        now_ns: int,
    ) -> None:
        session = MediaSession(self._parameters(config, local_ufrag), now_ns)
        # Nothing is kept of a check that does not prove itself.
        session.handle_datagram(
            Demux.STUN, record.payload, record.client, record.local_ip, arrival_ns, now_ns
        )
        if session.state is State.NEW:  # a proven request, answered with an error
            self._send_all(session)
            return
        before = self._calls.get(record.slot)
        if before is not None:
            before.status.disown()
            self._end(before, EndReason.HANGUP, "its slot was given to another call")
        backend = self._node.config.backends[config.backend_id]
        status = CallStatus(
            self._status.writer(record.slot),
            generation=config.generation,
            incarnation=self._incarnation,
            worker=self._index,
            relay=self._relay,
            client=record.client,
            local_ip=record.local_ip,
            udp_port=self._node.udp_port,
            backend_name=backend.name,
            now_ns=now_ns,
        )
        call = Call(self, record.slot, config, backend, session, status)
        self._calls[record.slot] = call
        log.info("call.started", call=call.call_id, client=status.client_text, backend=backend.name)
        try:
            call.open()
        except Exception:
            self.broken(call)

    def _parameters(self, config: SessionConfig, local_ufrag: str) -> SessionParameters:
        node_config = self._node.config
        return SessionParameters(
            local_ufrag=local_ufrag,
            ice_pwd=ice_pwd(local_ufrag, self._keys),
            remote_ufrag=config.remote_ufrag,
            certificate_pem=self._node.certificate_pem,
            private_key_pem=self._node.private_key_pem,
            fingerprint_algorithm=_ALGORITHM_TEXT[
                FingerprintAlgorithm(config.fingerprint_algorithm)
            ],
            remote_fingerprint=config.remote_fingerprint,
            dtls_is_client=bool(config.dtls_active),
            payload_type=config.audio_payload_type,
            local_ssrc=config.local_ssrc,
            remote_ssrc=config.remote_ssrc,
            client_receives=bool(config.client_receives),
            cname=config.call_id,
            unix_offset_ns=time.time_ns() - time.monotonic_ns(),
            end_deadline_ns=config.end_deadline_ns,
            max_wait_ms=node_config.max_wait_ms,
            playout_lead_ms=node_config.playout_lead_ms,
            opus_complexity=node_config.opus_complexity,
            opus_bitrate=node_config.opus_bitrate,
        )

    def _refuse(self, record: HopRecord, local_ufrag: str) -> None:
        """Tell the client of an ended call that it has ended: an authenticated 403 revokes
        its consent at once (RFC 7675 section 5.2) where silence would take half a minute."""
        pwd = ice_pwd(local_ufrag, self._keys)
        response = ice_lite.refuse(record.payload, local_ufrag, pwd)
        if self._refusals_left <= 0:
            return
        self._refusals_left -= 1
        self._row.count(Counter.STUN_REFUSED)
        self._sockets.send(response, record.client, record.local_ip)

    # --- time ---

    def sweep(self, now_ns: int) -> None:
        """See hang-ups in the session table; keep the heartbeat."""
        self._swept_ns = now_ns
        for call in list(self._calls.values()):
            ident = self._table.ident(call.slot)
            if ident.generation != call.generation:
                call.status.disown()
                self._end(call, EndReason.HANGUP, "its slot was given to another call")
            elif ident.state is not SessionState.OFFERED:
                self._end(call, EndReason.HANGUP, "hung up")
        if now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self._refusals_left = REFUSALS_PER_HEARTBEAT
            self._row.heartbeat(now_ns, len(self._calls))

    def _sweep_after_stall(self, now_ns: int) -> None:
        if now_ns - self._swept_ns > STALL_NS:
            self.sweep(now_ns)

    def _end(self, call: Call, reason: EndReason, detail: str) -> None:
        try:
            call.end(reason, detail)
        except Exception:
            self.broken(call)

    def stop(self) -> None:
        """End every call politely."""
        for call in list(self._calls.values()):
            self._end(call, EndReason.SHUTDOWN, "the edge is shutting down")

    async def run(self) -> None:
        """Until SIGTERM."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stopping.set)
        self._row.heartbeat(time.monotonic_ns(), 0)
        loop.add_reader(self._hop.fileno(), self.hop_readable)
        log.info("transceiver.ready", hop_port=self._hop.getsockname()[1])
        while not stopping.is_set():
            self.sweep(time.monotonic_ns())
            try:
                await asyncio.wait_for(stopping.wait(), SWEEP_S)
            except TimeoutError:
                continue
        self.stop()
        await asyncio.sleep(0)


def _kind(record: HopRecord) -> Demux:
    if record.flags & HopFlag.STUN:
        return Demux.STUN
    return Demux.DTLS if record.flags & HopFlag.DTLS else Demux.RTP


def _inherited(fd: int) -> socket.socket | None:
    return socket.socket(fileno=fd) if fd >= 0 else None


async def _main(arguments: argparse.Namespace, node: NodeState) -> None:
    hop = _inherited(arguments.hop_fd)
    assert hop is not None
    hop.setblocking(False)
    sockets = PublicSockets(_inherited(arguments.udp4_fd), _inherited(arguments.udp6_fd))
    transceiver = Transceiver(node, arguments.index, arguments.incarnation, hop, sockets)
    # Half a second of imports, taken now and not in the middle of somebody's call.
    import dataplane.workers.data_channel  # noqa: F401

    gc.collect()
    gc.freeze()
    await transceiver.run()


def main() -> None:
    """``python -m dataplane.workers.transceiver``: started by the supervisor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--incarnation", type=int, required=True)
    parser.add_argument("--hop-fd", type=int, required=True)
    parser.add_argument("--udp4-fd", type=int, default=-1)
    parser.add_argument("--udp6-fd", type=int, default=-1)
    arguments = parser.parse_args()
    node = NodeState.load(arguments.node)
    title = f"transceiver {arguments.index}"
    setproctitle(f"earshot {title}")
    setup(title, node.config.log_format, node.config.log_level)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_main(arguments, node))


if __name__ == "__main__":
    main()
