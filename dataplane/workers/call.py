"""One call in a transceiver: the session core with its backend, data channels and status row."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import orjson

from dataplane.config import Backend
from dataplane.log import get_logger
from dataplane.proto import events
from dataplane.proto.backend_frame import (
    AudioFrame,
    BackendFrame,
    Clear,
    Concealed,
    End,
    Event,
    FrameType,
    Mark,
    Ready,
    Start,
    Stop,
    parse_payload,
)
from dataplane.proto.demux import Demux
from dataplane.proto.errors import BadPacket
from dataplane.proto.hop import HopRecord
from dataplane.proto.media_session import ChannelData, Ended, MediaSession, State, StateChanged
from dataplane.shm.enums import BackendState, CallState, Counter, EndReason
from dataplane.shm.sessions import SessionConfig
from dataplane.workers.backend_link import BackendLink
from dataplane.workers.call_status import CallStatus

if TYPE_CHECKING:
    from dataplane.workers.data_channel import DataChannels

log = get_logger()

_BACKEND_EVENTS = {
    BackendState.UNAVAILABLE: events.backend_unavailable,
    BackendState.REFUSED: events.backend_refused,
    BackendState.LOST: events.backend_lost,
}

EVENTS_HELD = 64
EVENTS_HELD_BYTES = 1 << 20
"""Events of the client that wait for a backend that is not ready, and the other way about for
a client that is not connected."""


class Edge(Protocol):
    """What a call needs of its worker."""

    def transmit(self, call: Call) -> None: ...

    def reschedule(self, call: Call) -> None: ...

    def call_ended(self, call: Call) -> None: ...

    def count(self, counter: Counter, n: int = 1) -> None: ...

    def broken(self, call: Call) -> None: ...


class Call:
    """Feeds the core, drains it after every input, and never lets an error out."""

    def __init__(
        self,
        edge: Edge,
        slot: int,
        config: SessionConfig,
        backend: Backend,
        session: MediaSession,
        status: CallStatus,
    ) -> None:
        self.slot = slot
        self.generation = config.generation
        self.call_id = config.call_id
        self.session = session
        self.status = status
        self.scheduled_ns = 0
        self._edge = edge
        self._config = config
        self._channels: DataChannels | None = None
        self._held_events: list[bytes] = []
        self._unsent_events: list[bytes] = []
        self._over = False
        self._uplink_sample = 0
        self._told_unavailable = False
        self.link = BackendLink(
            backend.path,
            Start(
                session_id=config.call_id,
                backend=backend.name,
                options=orjson.Fragment(config.options or b"{}"),
                client_address=status.client_text,
            ).encode(),
            self,
            self._audio_dropped,
        )

    def open(self) -> None:
        """Connect to the backend. Not in __init__: it calls back."""
        self.link.open()
        self._drain(time.monotonic_ns())

    # --- from the client ---

    def handle_record(self, record: HopRecord, kind: Demux, arrival_ns: int, now_ns: int) -> None:
        """One datagram. Raises BadPacket for what is dropped."""
        try:
            self.session.handle_datagram(
                kind, record.payload, record.client, record.local_ip, arrival_ns, now_ns
            )
        finally:
            self._drain(now_ns)

    def handle_timer(self, now_ns: int) -> None:
        """Something of the session is due."""
        self.session.handle_timer(now_ns)
        self._drain(now_ns)

    def next_timeout(self) -> int | None:
        return None if self._over else self.session.next_timeout()

    def end(self, reason: EndReason, detail: str) -> None:
        """End the call for the edge's own reason."""
        now_ns = time.monotonic_ns()
        self.session.end(reason.name.lower(), detail, now_ns)
        self._drain(now_ns)

    def end_broken(self, detail: str) -> None:
        """End the call after a bug of ours has left it in no state that we know of."""
        try:
            self.end(EndReason.INTERNAL_ERROR, detail)
        except Exception:
            log.exception("call.end_failed", call=self.call_id)
        self._ended(Ended("internal_error", detail), time.monotonic_ns())

    # --- from the backend (BackendHandler) ---

    def backend_frame(self, frame_type: int, payload: bytes) -> None:
        """One frame. Raises BadPacket when its content cannot be used."""
        try:
            self._backend_frame(frame_type, payload)
        except BadPacket:
            raise
        except Exception:
            self._edge.broken(self)

    def _backend_frame(self, frame_type: int, payload: bytes) -> None:
        try:
            frame = parse_payload(frame_type, payload)
        except BadPacket as bad:
            if frame_type != FrameType.EVENT:
                raise
            # The framing is intact: a backend whose JSON is laxer than ours loses the event alone.
            self.backend_bad_frame()
            self.link.send(Event(events.error("invalid_event", bad.detail)).encode())
            return
        if frame is None:
            return
        now_ns = time.monotonic_ns()
        if isinstance(frame, Ready):
            self._backend_ready(frame, now_ns)
        elif self.link.state is not BackendState.READY and not isinstance(frame, Stop):
            raise BadPacket("backend_bad_frame", "a frame before READY")
        else:
            self._backend_says(frame, now_ns)
        self._drain(now_ns)

    def _backend_says(self, frame: BackendFrame, now_ns: int) -> None:
        downlink = self.session.downlink
        assert downlink is not None
        match frame:
            case AudioFrame():
                downlink.push(frame.pcm, now_ns)
            case Event():
                self._send_to_client(frame.text)
            case Mark():
                downlink.mark(frame.name, now_ns)
            case Clear():
                downlink.clear(frame.generation, now_ns)
            case End():
                downlink.end(now_ns)
            case Stop():
                reason = frame.reason or "the backend ended the call"
                self.session.end("backend_stopped", reason, now_ns)
            case _:
                pass  # the edge's own types, said back: ignored like unknown ones

    def backend_bad_frame(self) -> None:
        """The backend sent what is no frame."""
        self._edge.count(Counter.BACKEND_BAD_FRAME)

    def backend_state(self, state: BackendState, detail: str) -> None:
        """The link's state moved."""
        self.status.backend(state, detail)
        if state is not BackendState.READY and self.session.uplink is not None:
            self.session.uplink.set_rate(None)
        if state is BackendState.STARTED:
            self._edge.count(Counter.BACKEND_CONNECTS)
        elif state is BackendState.READY and self._told_unavailable:
            self._told_unavailable = False
            self._send_to_client(events.backend_ready(self.status.backend_name))
        elif state in _BACKEND_EVENTS and not self._told_unavailable:
            self._told_unavailable = True
            log.warning("backend.unavailable", call=self.call_id, detail=detail)
            # Without the detail: a path of this machine is the operator's to know.
            self._send_to_client(_BACKEND_EVENTS[state](self.status.backend_name))

    def _backend_ready(self, ready: Ready, now_ns: int) -> None:
        session = self.session
        assert session.uplink is not None
        assert session.downlink is not None
        self._uplink_sample = 0
        self.link.ready(ready.rate_in)
        session.uplink.set_rate(ready.rate_in)
        session.downlink.set_rate(ready.rate_out, now_ns)
        self.status.ready(now_ns)
        held, self._held_events = self._held_events, []
        for frame in held:
            self.link.send(frame)

    def _audio_dropped(self, frames: int) -> None:
        self.status.audio_dropped += frames
        self._edge.count(Counter.BACKEND_AUDIO_DROPPED, frames)

    # --- draining ---

    def _drain(self, now_ns: int) -> None:
        """Carry everything that the core has to say to where it belongs."""
        self._drain_uplink()
        self._drain_downlink()
        for event in self.session.poll_event():
            if isinstance(event, ChannelData):
                if self._channels is not None:
                    self._channels.handle_data(event.data)
            elif isinstance(event, StateChanged):
                self._state_changed(event.state, now_ns)
            elif isinstance(event, Ended):
                self.status.figures(self.session)
                self._ended(event, now_ns)
        self._edge.transmit(self)
        self._edge.reschedule(self)

    def _drain_uplink(self) -> None:
        uplink = self.session.uplink
        if uplink is None:
            return
        for item in uplink.poll():
            if isinstance(item, AudioFrame):
                samples = len(item.pcm) // 2
                self.link.send_audio(item.encode(), self._uplink_sample, samples)
                self._uplink_sample += samples
            elif isinstance(item, Concealed):
                self.link.send(item.encode())

    def _drain_downlink(self) -> None:
        downlink = self.session.downlink
        if downlink is None:
            return
        for frame in downlink.poll_backend_frames():
            # A successor is told nothing of what its predecessor said.
            if self.link.state is BackendState.READY:
                self.link.send(frame)

    def _state_changed(self, state: State, now_ns: int) -> None:
        if state is State.ENDED:
            return  # told with its reason, in one writing: _ended
        self.status.state(CallState[state.name], now_ns)
        if state is State.CONNECTED:
            self._edge.count(Counter.CALLS_STARTED)
            log.info("call.connected", call=self.call_id, client=self.status.client_text)
            if self._config.sctp_port:
                self._open_channels()

    def _ended(self, event: Ended, now_ns: int) -> None:
        if self._over:
            return
        self._over = True
        self.status.ended(EndReason[event.reason.upper()], event.detail, now_ns)
        self._edge.call_ended(self)
        self._edge.count(Counter.CALLS_ENDED)
        log.info("call.ended", call=self.call_id, reason=event.reason, detail=event.detail)
        self.link.close(Stop(event.reason).encode())
        if self._channels is not None:
            self._channels.close()

    # --- data channels ---

    def _open_channels(self) -> None:
        from dataplane.workers.data_channel import DataChannels

        self._channels = DataChannels(
            is_client=bool(self._config.dtls_active),
            remote_port=self._config.sctp_port,
            max_message_bytes=self._config.sctp_max_message_bytes,
            send=self._send_channel_data,
            on_text=self._client_text,
            on_drop=lambda: self._edge.count(Counter.DROP_SCTP),
        )
        unsent, self._unsent_events = self._unsent_events, []
        for event in unsent:
            self._send_to_client(event)

    def _send_channel_data(self, data: bytes) -> None:
        # aiortc's timers call this too, outside of any input of ours.
        self.session.send_channel_data(data, time.monotonic_ns())
        self._edge.transmit(self)

    def _client_text(self, label: str, text: str) -> None:
        """A text message of the client: JSON goes to the backend as an EVENT."""
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError as error:
            message = f"data channel '{label}': this is not JSON: {error}"
            self._send_to_client(events.error("invalid_request_error", message, "invalid_json"))
            return
        frame = Event(text.encode()).encode()
        if self.link.state is BackendState.READY:
            self.link.send(frame)
        else:
            _hold(self._held_events, frame)

    def _send_to_client(self, event: bytes) -> None:
        if self._channels is not None:
            self._channels.send_text(event.decode(errors="replace"))
        elif self._config.sctp_port:
            # The backend may fail before DTLS has carried the first channel.
            _hold(self._unsent_events, event)


def _hold(events_held: list[bytes], event: bytes) -> None:
    """Keep one more event, if there is room."""
    if (
        len(events_held) < EVENTS_HELD
        and sum(map(len, events_held)) + len(event) <= EVENTS_HELD_BYTES
    ):
        events_held.append(event)
