"""The life of a call, on real shared memory and virtual time."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator

import pytest

from controlplane.calls import (
    OFFER_DEADLINE_NS,
    STUCK_NS,
    TOMBSTONE_NS,
    UNSTARTED_NS,
    Call,
    Calls,
    CapacityError,
    NodeIdentity,
)
from controlplane.sdp import SdpError, parse_sdp
from controlplane.slots import GENERATION_MASK, SlotPool, next_generation
from controlplane.worker_view import SILENCE_LIMIT_NS, WorkerView, is_running
from dataplane.proto.ufrag import ClusterKeys, ice_pwd, parse_ufrag
from dataplane.shm.enums import CallState, EndReason, SessionState, WorkerKind
from tests.support.bare_node import CHROMIUM_OFFER, BareNode, bare_node

SECOND = 1_000_000_000
START = 1000 * SECOND


@pytest.fixture
def node() -> Iterator[BareNode]:
    with bare_node() as made:
        made.start_transceivers(START)
        yield made


def control_plane(node: BareNode, now_ns: int = START) -> Calls:
    """A control plane that takes over what the tables hold."""
    state = node.state
    calls = Calls(
        node.sessions,
        node.status,
        WorkerView(node.workers, state.config.transceivers),
        NodeIdentity(
            node_id=state.node_id,
            keys=ClusterKeys.from_text(state.cluster_keys),
            fingerprint_sha256=state.fingerprint_sha256,
            candidates=(("127.0.0.1", 3478),),
        ),
    )
    calls.recover(now_ns)
    return calls


def create(calls: Calls, now_ns: int = START) -> Call:
    return calls.create(CHROMIUM_OFFER, 0, b'{"a":1}', now_ns)[0]


def test_create_publishes_the_row_that_the_answer_speaks_of(node: BareNode) -> None:
    calls = control_plane(node)
    call, answer = calls.create(CHROMIUM_OFFER, 1, b'{"a":1}', START)
    audio = parse_sdp(answer.encode()).media[0]
    keys = ClusterKeys.from_text(node.state.cluster_keys)
    assert audio.ice_ufrag is not None
    ufrag = parse_ufrag(audio.ice_ufrag.encode(), keys)
    assert (ufrag.node_id, ufrag.worker, ufrag.slot, ufrag.key_id) == (7, 0, call.slot, 3)
    assert audio.ice_pwd == ice_pwd(audio.ice_ufrag, keys)
    snapshot = node.sessions.read(call.slot)
    assert snapshot is not None
    ident, config = snapshot
    assert (ident.state, ident.worker) == (SessionState.OFFERED, 0)
    assert (ident.generation, ident.previous_generation) == (ufrag.generation, 0)
    assert config.call_id == call.call_id
    assert config.options == b'{"a":1}'
    assert config.offer_deadline_ns == START + OFFER_DEADLINE_NS
    assert (config.audio_payload_type, config.audio_level_ext_id, config.mid_ext_id) == (111, 1, 4)
    assert (config.backend_id, config.remote_ufrag, config.mid) == (1, "XLSz", "0")
    assert (config.sctp_port, config.red_payload_type, config.dtls_active) == (5000, 255, True)
    assert audio.ssrcs == [config.local_ssrc]
    assert calls.get(call.call_id) is call
    assert len(calls) == 1


def test_calls_are_spread_over_the_live_transceivers(node: BareNode) -> None:
    calls = control_plane(node)
    assert sorted(create(calls).worker for _ in range(6)) == [0, 0, 0, 1, 1, 1]
    node.start_worker(WorkerKind.TRANSCEIVER, 1, START + 10 * SECOND)
    calls.tick(START + 10 * SECOND)
    assert {create(calls, START + 10 * SECOND).worker for _ in range(4)} == {1}


def test_no_live_transceiver(node: BareNode) -> None:
    calls = control_plane(node, START + 4 * SECOND)
    with pytest.raises(CapacityError) as caught:
        create(calls, START + 4 * SECOND)
    assert (caught.value.code, caught.value.retry_after_s) == ("no_transceiver", 1)
    assert len(calls) == 0


def test_a_bad_offer_takes_nothing(node: BareNode) -> None:
    calls = control_plane(node)
    with pytest.raises(SdpError):
        calls.create(b"v=0\n", 0, b"", START)
    with pytest.raises(ValueError, match="options"):
        calls.create(CHROMIUM_OFFER, 0, b"x" * 15361, START)
    assert len(calls) == 0
    assert len([create(calls) for _ in range(16)]) == 16


def test_full_table(node: BareNode) -> None:
    calls = control_plane(node)
    made = [create(calls) for _ in range(16)]
    with pytest.raises(CapacityError) as caught:
        create(calls)
    assert (caught.value.code, caught.value.retry_after_s) == ("table_full", 5)
    calls.hang_up(made[3], START)
    calls.tick(START + UNSTARTED_NS)
    with pytest.raises(CapacityError) as caught:
        create(calls, START + UNSTARTED_NS)
    assert caught.value.retry_after_s == 1
    late = START + UNSTARTED_NS + SECOND
    assert create(calls, late).slot == made[3].slot  # the tombstone made room
    assert calls.get(made[3].call_id) is None


def test_never_connected_then_remembered_then_free(node: BareNode) -> None:
    calls = control_plane(node)
    call = create(calls)
    deadline = START + OFFER_DEADLINE_NS
    calls.tick(deadline - 1)
    assert call.state is SessionState.OFFERED
    calls.tick(deadline)
    assert call.state is SessionState.ENDED
    snapshot = node.sessions.read(call.slot)
    assert snapshot is not None
    assert snapshot[0].state is SessionState.ENDED
    assert snapshot[1].end_reason == EndReason.NEVER_CONNECTED
    assert snapshot[1].closed_ns == deadline
    calls.tick(deadline + TOMBSTONE_NS - 1)
    assert calls.get(call.call_id) is call
    calls.tick(deadline + TOMBSTONE_NS)
    assert calls.get(call.call_id) is None
    assert node.sessions.ident(call.slot).state is SessionState.FREE


def test_a_started_call_outlives_the_offers_deadline(node: BareNode) -> None:
    calls = control_plane(node)
    call = create(calls)
    node.start_call(call.slot)
    late = START + 3600 * SECOND
    node.start_transceivers(late)
    calls.tick(late)
    assert call.state is SessionState.OFFERED


def test_status_of_an_earlier_call_in_the_slot_means_nothing(node: BareNode) -> None:
    calls = control_plane(node)
    call = create(calls)
    writer = node.start_call(call.slot)
    writer.fields.generation = call.generation - 1
    node.end_call(writer, EndReason.CLIENT_CLOSED, START)
    calls.tick(START + SECOND)
    assert call.state is SessionState.OFFERED
    assert calls.status_of(call) is None


@pytest.mark.parametrize("reason", [EndReason.CLIENT_CLOSED, EndReason.BACKEND_STOPPED])
def test_the_transceivers_reason_is_taken_over(node: BareNode, reason: EndReason) -> None:
    calls = control_plane(node)
    call = create(calls)
    node.end_call(node.start_call(call.slot), reason, START)
    calls.tick(START + SECOND)
    assert call.ended
    assert call.config.end_reason == reason
    assert len(calls) == 0
    assert calls.remembered == 1


def test_hang_up_of_a_started_call_waits_for_its_transceiver(node: BareNode) -> None:
    calls = control_plane(node)
    call = create(calls)
    writer = node.start_call(call.slot)
    assert calls.hang_up(call, START)
    assert not calls.hang_up(call, START)
    assert node.sessions.ident(call.slot).state is SessionState.CLOSING
    calls.tick(START + SECOND)
    assert not call.ended
    node.end_call(writer, EndReason.HANGUP, START + SECOND)
    calls.tick(START + SECOND)
    assert call.ended
    assert call.config.end_reason == EndReason.HANGUP
    assert not calls.hang_up(call, START)


def test_hang_up_of_a_call_that_never_started(node: BareNode) -> None:
    calls = control_plane(node)
    call = create(calls)
    calls.hang_up(call, START)
    calls.tick(START + UNSTARTED_NS - 1)
    assert not call.ended
    calls.tick(START + UNSTARTED_NS)
    assert call.config.end_reason == EndReason.HANGUP


def test_hang_up_that_the_transceiver_ignores(node: BareNode) -> None:
    calls = control_plane(node)
    call = create(calls)
    node.start_call(call.slot)
    calls.hang_up(call, START)
    calls.tick(START + STUCK_NS)
    assert not call.ended
    calls.tick(START + STUCK_NS + 1)
    assert call.config.end_reason == EndReason.HANGUP


def test_a_successor_of_the_transceiver_ends_the_calls_of_the_dead_one(node: BareNode) -> None:
    calls = control_plane(node)
    started, waiting, other = create(calls), create(calls), create(calls)
    assert (started.worker, waiting.worker, other.worker) == (0, 1, 0)
    node.start_call(started.slot, life=1)
    node.start_worker(WorkerKind.TRANSCEIVER, 0, START, life=2)
    calls.tick(START + SECOND)
    assert started.config.end_reason == EndReason.TRANSCEIVER_DIED
    assert not waiting.ended
    assert not other.ended  # it had not started: the successor can serve it
    node.start_call(other.slot, life=2)
    calls.tick(START + SECOND)
    assert not other.ended


def test_death_of_the_process_is_enough(node: BareNode) -> None:
    calls = control_plane(node)
    with subprocess.Popen(["sleep", "600"]) as process:
        node.start_worker(WorkerKind.TRANSCEIVER, 0, START).row.pid = process.pid
        call = create(calls)
        node.start_call(call.slot)
        calls.tick(START + SECOND)
        assert not call.ended
        process.kill()
    calls.tick(START + SECOND)
    assert call.config.end_reason == EndReason.TRANSCEIVER_DIED
    assert create(calls).worker == 1


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen(["true"]) as process:
        while is_running(process.pid):
            pass
        assert process.returncode is None  # not reaped yet
    assert not is_running(process.pid)


def test_a_silent_transceiver_takes_no_calls_and_loses_its_own_in_the_end(node: BareNode) -> None:
    calls = control_plane(node)
    call = create(calls)
    node.start_call(call.slot)
    quiet = START + SILENCE_LIMIT_NS
    calls.tick(quiet)
    assert not call.ended
    with pytest.raises(CapacityError):
        create(calls, quiet)
    calls.tick(quiet + 1)
    assert call.config.end_reason == EndReason.TRANSCEIVER_DIED


def test_generations_move_on_and_slots_rotate(node: BareNode) -> None:
    calls = control_plane(node)
    seen: dict[int, list[int]] = {}
    now = START
    for _ in range(48):
        call = create(calls, now)
        seen.setdefault(call.slot, []).append(call.generation)
        calls.hang_up(call, now)
        now += SECOND
        calls.tick(now)
        now += TOMBSTONE_NS
        node.start_transceivers(now)
        calls.tick(now)
    assert {slot: len(generations) for slot, generations in seen.items()} == dict.fromkeys(
        range(16), 3
    )
    for first, second, third in seen.values():
        assert (second, third) == (next_generation(first), next_generation(second))


def test_next_generation() -> None:
    assert next_generation(5) == 6
    assert next_generation(GENERATION_MASK) == 1
    assert all(0 < next_generation(0) <= GENERATION_MASK for _ in range(100))
    assert len({next_generation(0) for _ in range(100)}) > 1


def test_slot_pool_hands_out_the_longest_free() -> None:
    pool = SlotPool([0, 1])
    first = pool.take()
    assert first == 0
    pool.give(first)
    assert [pool.take(), pool.take(), pool.take()] == [1, 0, None]
    assert len(pool) == 0


def test_a_new_control_plane_takes_everything_over(node: BareNode) -> None:
    before = control_plane(node)
    offered, closing, running, ended = (create(before) for _ in range(4))
    node.start_call(closing.slot)
    before.hang_up(closing, START + SECOND)
    node.start_call(running.slot)
    node.end_call(node.start_call(ended.slot), EndReason.CLIENT_CLOSED, START)
    before.tick(START + SECOND)

    after = control_plane(node, START + SECOND)
    assert (len(after), after.remembered) == (3, 1)
    states = {call.call_id: call.state for call in after}
    assert states == {
        offered.call_id: SessionState.OFFERED,
        closing.call_id: SessionState.CLOSING,
        running.call_id: SessionState.OFFERED,
        ended.call_id: SessionState.ENDED,
    }
    again = after.get(running.call_id)
    assert again is not None
    assert (again.config.options, again.config.backend_id) == (b"", 0)
    assert after.hang_up(again, START + SECOND)
    late = START + SECOND + TOMBSTONE_NS
    node.start_transceivers(late)
    after.tick(late)
    assert after.get(ended.call_id) is None
    assert after.get(offered.call_id) is not None  # a tombstone: never connected
    assert {create(after, late).worker for _ in range(2)} == {0, 1}
    first_use = node.sessions.ident(ended.slot).generation
    assert first_use == ended.generation  # stays, for the next allocation


def test_a_row_left_in_the_middle_of_a_write_is_mended(node: BareNode) -> None:
    before = control_plane(node)
    call = create(before)
    row = node.sessions.region.writable_row(call.slot)
    row.sequence += 1  # the control plane died in set_state
    assert node.sessions.read(call.slot) is None
    after = control_plane(node)
    assert after.get(call.call_id) is not None
    assert node.sessions.read(call.slot) is not None

    row.sequence += 1  # and here in publish, before the ident was stored
    row.config.generation = 0
    assert len(control_plane(node)) == 0
    assert node.sessions.ident(call.slot).state is SessionState.FREE
    assert node.sessions.ident(call.slot).generation == call.generation


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_events_keeps_the_books(node: BareNode, seed: int) -> None:
    """Offers, starts, ends, hang-ups, dying workers, restarts of the control
    plane and time, in random order: the table and the indices always agree."""
    rng = random.Random(seed)
    calls = control_plane(node)
    now, lives = START, [1, 1]
    ids: set[str] = set()

    def offer() -> None:
        try:
            call = create(calls, now)
        except CapacityError:
            return
        assert call.call_id not in ids
        ids.add(call.call_id)

    def start(call: Call) -> None:
        if node.sessions.ident(call.slot).state is SessionState.OFFERED:
            node.start_call(call.slot, lives[call.worker])

    def hang_up(call: Call) -> None:
        calls.hang_up(call, now)

    def finish(call: Call) -> None:
        status = calls.status_of(call)
        if status is not None and status.state != CallState.ENDED:
            node.end_call(node.start_call(call.slot), EndReason.CLIENT_CLOSED, now)

    for _ in range(400):
        live = [call for call in calls if not call.ended]
        action = rng.randrange(9)
        if action <= 2:
            offer()
        elif action <= 5 and live:
            rng.choice([start, finish, hang_up])(rng.choice(live))
        elif action == 6:
            lives[rng.randrange(2)] += 1
        elif action == 7 and rng.random() < 0.2:
            calls = control_plane(node, now)
        else:
            now += rng.choice([SECOND // 10, SECOND, 10 * SECOND])
        for index, life in enumerate(lives):
            node.start_worker(WorkerKind.TRANSCEIVER, index, now, life)
        calls.tick(now)
        check_books(node, calls)
    assert len(ids) > 30


def check_books(node: BareNode, calls: Calls) -> None:
    by_slot = {call.slot: call for call in calls}
    assert len(by_slot) == len(calls) + calls.remembered
    for slot in range(node.sessions.row_count):
        ident = node.sessions.ident(slot)
        call = by_slot.get(slot)
        if call is None:
            assert ident.state is SessionState.FREE
        else:
            assert (ident.state, ident.worker) == (call.state, call.worker)
            assert ident.generation == call.generation
            assert calls.get(call.call_id) is call
