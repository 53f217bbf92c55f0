"""The life of a call, as the control plane sees it.

    take a slot      publish          transceiver says ENDED,
    and generation   the row          died, or never heard of it       60 s
    FREE ─────────▶ (ours) ─────────▶ OFFERED ────────────▶ ENDED ─────────▶ FREE
                                         │                    ▲
                                  hang-up└────▶ CLOSING ──────┘

A row is written here and nowhere else; what becomes of the call is read from
the status table, where its transceiver writes. Nobody is asked and nothing is
waited for: `tick` looks at every live call ten times a second. All that matters
is in shared memory, so `recover` brings a new control plane to where a killed
one stopped.

ENDED rows stay for a minute: checks that still come are answered 403 (RFC 7675
section 5.2), and the admin API can say why the call ended. When the table is
full, the oldest of them makes room early.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from controlplane.answer import LocalParameters, encode_answer
from controlplane.offer_answer import Negotiated, Policy, negotiate
from controlplane.placement import place
from controlplane.sdp import SessionDescription, parse_sdp
from controlplane.slots import SlotPool, next_generation
from controlplane.tokens import new_call_id
from controlplane.worker_view import WorkerView
from dataplane.log import get_logger
from dataplane.proto.ufrag import ClusterKeys, Ufrag, encode_ufrag, ice_pwd
from dataplane.shm.enums import CallState, Codec, EndReason, FingerprintAlgorithm, SessionState
from dataplane.shm.sessions import Ident, SessionConfig, SessionTable
from dataplane.shm.status import Status, StatusTable

log = get_logger()

OFFER_DEADLINE_NS = 30_000_000_000
TOMBSTONE_NS = 60_000_000_000
# A tombstone younger than this is not given up for a new call.
TOMBSTONE_MIN_NS = 1_000_000_000
# The transceiver sees a hang-up within 20 ms. A call that it never started is
# ended here after UNSTARTED; one that it does not end, after STUCK.
UNSTARTED_NS = 200_000_000
STUCK_NS = 5_000_000_000
FULL_RETRY_S = 5

_ALGORITHMS = {
    "sha-256": FingerprintAlgorithm.SHA256,
    "sha-384": FingerprintAlgorithm.SHA384,
    "sha-512": FingerprintAlgorithm.SHA512,
}
_CODECS = {"opus": Codec.OPUS, "pcmu": Codec.PCMU, "pcma": Codec.PCMA}


class CapacityError(Exception):
    """No call can be taken just now."""

    def __init__(self, message: str, code: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class NodeIdentity:
    """What ufrags and answers say of this node."""

    node_id: int
    keys: ClusterKeys
    fingerprint_sha256: str
    candidates: tuple[tuple[str, int], ...]
    """Advertised hosts with the public UDP port, in order of preference."""


@dataclass(slots=True)
class Call:
    """A row of the session table that is not free."""

    slot: int
    worker: int
    state: SessionState
    config: SessionConfig
    """Without the options, which may be 15 KiB."""

    @property
    def call_id(self) -> str:
        return self.config.call_id

    @property
    def generation(self) -> int:
        return self.config.generation

    @property
    def offered_ns(self) -> int:
        return self.config.offer_deadline_ns - OFFER_DEADLINE_NS

    @property
    def ended(self) -> bool:
        return self.state is SessionState.ENDED


class Calls:
    """All calls of this node."""

    def __init__(
        self,
        sessions: SessionTable,
        status: StatusTable,
        workers: WorkerView,
        node: NodeIdentity,
        policy: Policy | None = None,
    ) -> None:
        self._sessions = sessions
        self._status = status
        self._workers = workers
        self._node = node
        self._policy = policy or Policy()
        self._by_id: dict[str, Call] = {}
        self._live: dict[int, Call] = {}
        self._tombstones: OrderedDict[int, Call] = OrderedDict()
        self._sessions_of: Tally[int] = Tally()
        self._slots = SlotPool(())

    def __len__(self) -> int:
        """Calls that have not ended."""
        return len(self._live)

    def __iter__(self) -> Iterator[Call]:
        """Live calls first, then the ended ones that are remembered."""
        yield from list(self._live.values())
        yield from list(self._tombstones.values())

    @property
    def capacity(self) -> int:
        return self._sessions.row_count

    @property
    def remembered(self) -> int:
        """Ended calls whose slots are not free yet."""
        return len(self._tombstones)

    def get(self, call_id: str) -> Call | None:
        return self._by_id.get(call_id)

    def status_of(self, call: Call) -> Status | None:
        """What its transceiver says; None before the first check came."""
        status = self._status.read(call.slot)
        return status if status and status.generation == call.generation else None

    # --- starting ---

    def recover(self, now_ns: int) -> None:
        """Takes over what an earlier control plane left in the table."""
        for slot in self._sessions.recover():
            log.warning("table.row_recovered", slot=slot)
        free: list[int] = []
        ended: list[Call] = []
        for slot in range(self._sessions.row_count):
            if self._sessions.ident(slot).state is SessionState.FREE:
                free.append(slot)
                continue
            snapshot = self._sessions.read(slot)
            if snapshot is None or snapshot[1].generation != snapshot[0].generation:
                self._sessions.free(slot)
                free.append(slot)
                continue
            ident, config = snapshot
            config.options = b""
            call = Call(slot, ident.worker, ident.state, config)
            self._by_id[call.call_id] = call
            if call.ended:
                ended.append(call)
            else:
                self._add_live(call)
        for call in sorted(ended, key=lambda call: call.config.closed_ns):
            self._tombstones[call.slot] = call
        self._slots = SlotPool(free)
        self._workers.refresh(now_ns)
        log.info("table.read", live=len(self), ended=self.remembered, rows=self.capacity)

    # --- a new call ---

    def create(self, body: bytes, backend_id: int, options: bytes, now_ns: int) -> tuple[Call, str]:
        """Answers an offer: the call, which is in the table now, and the answer.

        Raises SdpError for the offer and CapacityError for our own state; then
        nothing is left behind.
        """
        offer = parse_sdp(body)
        agreed = negotiate(offer, self._policy)
        worker = place(self._workers.loads(self._sessions_of, now_ns))
        if worker is None:
            # One may have come up since the last tick; /healthz knows already.
            self._workers.refresh(now_ns)
            worker = place(self._workers.loads(self._sessions_of, now_ns))
        if worker is None:
            raise CapacityError("no transceiver is up; they are being started", "no_transceiver", 1)
        slot = self._take_slot(now_ns)
        try:
            return self._publish(offer, agreed, backend_id, options, slot, worker, now_ns)
        except BaseException:
            self._slots.give(slot)
            raise

    def _publish(
        self,
        offer: SessionDescription,
        agreed: Negotiated,
        backend_id: int,
        options: bytes,
        slot: int,
        worker: int,
        now_ns: int,
    ) -> tuple[Call, str]:
        generation = next_generation(self._sessions.ident(slot).generation)
        config = _config_of(agreed, generation, backend_id, options, now_ns)
        answer = encode_answer(offer, agreed, self._local(slot, worker, config))
        self._sessions.publish(slot, Ident(SessionState.OFFERED, worker, 0, generation), config)
        config.options = b""
        call = Call(slot, worker, SessionState.OFFERED, config)
        self._by_id[call.call_id] = call
        self._add_live(call)
        log.info("call.offered", call=call.call_id, slot=slot, worker=worker, backend=backend_id)
        return call, answer

    def _local(self, slot: int, worker: int, config: SessionConfig) -> LocalParameters:
        keys = self._node.keys
        name = Ufrag(keys.active, self._node.node_id, worker, slot, config.generation)
        local_ufrag = encode_ufrag(name, keys)
        return LocalParameters(
            ice_ufrag=local_ufrag,
            ice_pwd=ice_pwd(local_ufrag, keys),
            fingerprint_sha256=self._node.fingerprint_sha256,
            candidates=self._node.candidates,
            ssrc=config.local_ssrc,
            cname=config.call_id,
            session_id=secrets.randbits(62),
        )

    def _take_slot(self, now_ns: int) -> int:
        slot = self._slots.take()
        if slot is None and self._free_oldest(now_ns - TOMBSTONE_MIN_NS):
            slot = self._slots.take()
        if slot is None:
            wait = 1 if self._tombstones else FULL_RETRY_S
            raise CapacityError(
                f"all {self.capacity} rows of the session table are in use", "table_full", wait
            )
        return slot

    def _add_live(self, call: Call) -> None:
        self._live[call.slot] = call
        self._sessions_of[call.worker] += 1

    # --- its end ---

    def hang_up(self, call: Call, now_ns: int) -> bool:
        """Asks the transceiver to end the call; False if it is ending already."""
        if call.state is not SessionState.OFFERED:
            return False
        self._sessions.set_state(call.slot, SessionState.CLOSING, EndReason.HANGUP, now_ns)
        call.state = SessionState.CLOSING
        call.config.closed_ns = now_ns
        return True

    def tick(self, now_ns: int) -> None:
        """Looks at every live call, and frees the slots of long ended ones."""
        self._workers.refresh(now_ns)
        for call in list(self._live.values()):
            # One unsynchronised look at two integers: 4,000 calls in 2 ms, where
            # full reads take 130. What looks as if it mattered is read properly.
            glance = self._status.glance(call.slot)
            started = glance.generation == call.generation and glance.state != CallState.NONE
            if started and glance.state != CallState.ENDED:
                worker = self._workers.transceiver(call.worker)
                if call.state is SessionState.OFFERED and (
                    worker is None or not worker.has_lost(glance.incarnation, now_ns)
                ):
                    continue
            elif not started and self._may_wait(call, now_ns):
                continue
            reason = self._why_ended(call, now_ns)
            if reason is not None:
                self._end(call, reason, now_ns)
        while self._free_oldest(now_ns - TOMBSTONE_NS):
            pass

    def _may_wait(self, call: Call, now_ns: int) -> bool:
        """Of a call that no check has reached yet."""
        if call.state is SessionState.CLOSING:
            return now_ns - call.config.closed_ns < UNSTARTED_NS
        return now_ns < call.config.offer_deadline_ns

    def _why_ended(self, call: Call, now_ns: int) -> EndReason | None:
        """The rules, on a consistent reading. None: it goes on."""
        status = self.status_of(call)
        closing = call.state is SessionState.CLOSING
        if status is None and self._died_writing(call, now_ns):
            return EndReason.HANGUP if closing else EndReason.TRANSCEIVER_DIED
        if status is None or status.state == CallState.NONE:
            if self._may_wait(call, now_ns):
                return None
            return EndReason.HANGUP if closing else EndReason.NEVER_CONNECTED
        if status.state == CallState.ENDED:
            return EndReason(status.end_reason) or EndReason.INTERNAL_ERROR
        worker = self._workers.transceiver(call.worker)
        if worker is not None and worker.has_lost(status.incarnation, now_ns):
            return EndReason.HANGUP if closing else EndReason.TRANSCEIVER_DIED
        if closing and now_ns - call.config.closed_ns > STUCK_NS:
            log.warning("call.hangup_ignored", call=call.call_id, worker=call.worker)
            return EndReason.HANGUP
        return None

    def _died_writing(self, call: Call, now_ns: int) -> bool:
        """Whether the status cannot be read because the transceiver was killed in the middle of
        writing it."""
        glance = self._status.glance(call.slot)
        worker = self._workers.transceiver(call.worker)
        return (
            glance.generation == call.generation
            and worker is not None
            and worker.has_lost(glance.incarnation, now_ns)
        )

    def _end(self, call: Call, reason: EndReason, now_ns: int) -> None:
        self._sessions.set_state(call.slot, SessionState.ENDED, reason, now_ns)
        call.state = SessionState.ENDED
        call.config.closed_ns = now_ns
        call.config.end_reason = reason
        del self._live[call.slot]
        self._sessions_of[call.worker] -= 1
        self._tombstones[call.slot] = call
        log.info(
            "call.closed",
            call=call.call_id,
            reason=reason.name.lower(),
            worker=call.worker,
            seconds=round((now_ns - call.offered_ns) / 1e9, 3),
        )

    def _free_oldest(self, closed_before_ns: int) -> bool:
        """Frees the slot of the call that ended first, if that was early enough."""
        oldest = next(iter(self._tombstones.values()), None)
        if oldest is None or oldest.config.closed_ns > closed_before_ns:
            return False
        self._sessions.free(oldest.slot)
        del self._tombstones[oldest.slot]
        del self._by_id[oldest.call_id]
        self._slots.give(oldest.slot)
        return True


def _config_of(
    agreed: Negotiated, generation: int, backend_id: int, options: bytes, now_ns: int
) -> SessionConfig:
    optional_ids = {
        name: value
        for name in ("red_payload_type", "dtmf_payload_type", "audio_level_ext_id", "mid_ext_id")
        if (value := getattr(agreed, name)) is not None
    }
    return SessionConfig(
        call_id=new_call_id(),
        generation=generation,
        remote_fingerprint=agreed.remote_fingerprint,
        fingerprint_algorithm=_ALGORITHMS[agreed.fingerprint_algorithm],
        remote_ufrag=agreed.remote_ufrag,
        mid=agreed.mid,
        created_unix_ns=time.time_ns(),
        offer_deadline_ns=now_ns + OFFER_DEADLINE_NS,
        local_ssrc=_other_ssrc(agreed.remote_ssrc),
        remote_ssrc=agreed.remote_ssrc,
        sctp_port=agreed.sctp_port,
        sctp_max_message_bytes=agreed.sctp_max_message_bytes,
        backend_id=backend_id,
        codec=_CODECS[agreed.codec.name],
        audio_payload_type=agreed.audio_payload_type,
        client_sends=agreed.client_sends,
        client_receives=agreed.client_receives,
        dtls_active=agreed.dtls_active,
        nack=agreed.nack,
        ptime_ms=agreed.ptime_ms,
        options=options,
        **optional_ids,
    )


def _other_ssrc(remote_ssrc: int) -> int:
    """Random, not 0, and not the client's (RFC 3550 section 8.1)."""
    while (ssrc := secrets.randbits(32)) in (0, remote_ssrc):
        pass
    return ssrc
