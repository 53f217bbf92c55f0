"""SCTP and data channels for one call: aiortc's implementation behind an adapter.

aiortc's RTCSctpTransport wants a DTLS transport with six members; DtlsPort is
that and nothing more. Its coroutines are stepped by hand: with a transport that
never waits they finish at once, so the messages of a call stay in order and an
error of one of them is caught here, in its call.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from aiortc.rtcdatachannel import RTCDataChannel
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcsctptransport import RTCSctpCapabilities, RTCSctpTransport

from dataplane.log import get_logger
from dataplane.proto.sctp_packet import is_acceptable

log = get_logger()

EVENTS_LABEL = "oai-events"
"""The channel that events go out on when the client opened several."""

BUFFERED_LIMIT_BYTES = 1 << 20
"""Events beyond this wait for nobody: a client that does not read loses them."""
BUFFERED_LIMIT = 8192
"""The same, in messages."""

UNSENT_LIMIT = 64
"""Events that wait for a channel to open."""
UNSENT_LIMIT_CHARS = 1 << 18

MAX_STREAMS = 64
"""An honest page has a channel or two. A stream or channel costs a few kilobytes."""
MAX_HELD_CHUNKS = 512
"""Parts of messages that are not complete: two messages of the length that we announce.
aiortc walks them all for each chunk that comes."""


class DtlsPort:
    """What RTCSctpTransport needs of a DTLS transport."""

    def __init__(self, is_client: bool, send: Callable[[bytes], None]) -> None:
        self.state = "connected"
        self._role = "client" if is_client else "server"
        self._send = send
        self.receiver: RTCSctpTransport | None = None

    def _register_data_receiver(self, receiver: RTCSctpTransport) -> None:
        self.receiver = receiver

    def _unregister_data_receiver(self, receiver: RTCSctpTransport) -> None:
        self.receiver = None

    async def _send_data(self, data: bytes) -> None:
        if self.state == "connected":
            self._send(data)


class DataChannels:
    """All data channels of one call.

    send: takes what SCTP wants sent, for the DTLS connection to encrypt.
    on_text: called with (label, text) for every text message.
    on_drop: called for every packet or text that is thrown away.
    """

    def __init__(
        self,
        *,
        is_client: bool,
        remote_port: int,
        max_message_bytes: int,
        send: Callable[[bytes], None],
        on_text: Callable[[str, str], None],
        on_drop: Callable[[], None],
    ) -> None:
        self._on_text = on_text
        self._on_drop = on_drop
        self._port = DtlsPort(is_client, send)
        self._sctp = RTCSctpTransport(cast(RTCDtlsTransport, self._port))
        self._sctp.on("datachannel", self._opened)
        self._channels: list[RTCDataChannel] = []
        self._unsent: list[str] = []
        self._closed = False
        _step(self._sctp.start(RTCSctpCapabilities(maxMessageSize=max_message_bytes), remote_port))

    def handle_data(self, data: bytes) -> None:
        """One SCTP packet that DTLS decrypted. Whatever it provokes ends here."""
        if self._closed:
            return
        if not is_acceptable(data, self._sctp._last_received_tsn):
            self._on_drop()
            return
        try:
            _step(self._sctp._handle_data(data))
        except Exception:
            # aiortc asserts on the peer's behaviour; it is this call's peer.
            self._on_drop()
        if self._is_too_much():
            log.warning("data_channel.closed", reason="the client makes us keep too much")
            self.close()
        elif self._sctp._association_state is RTCSctpTransport.State.CLOSED:
            self.close()

    def _is_too_much(self) -> bool:
        """Whether the client made aiortc keep more than an honest one does: aiortc keeps to none
        of the bounds that it announces."""
        sctp = self._sctp
        streams = sctp._inbound_streams.values()
        return (
            len(streams) > MAX_STREAMS
            or len(sctp._data_channels) > MAX_STREAMS
            or sum(len(stream.reassembly) for stream in streams) > MAX_HELD_CHUNKS
            or len(sctp._sack_duplicates) > MAX_HELD_CHUNKS
            or len(sctp._data_channel_queue) > 2 * BUFFERED_LIMIT
        )

    def send_text(self, text: str) -> bool:
        """Send on the events channel; False if it had to be thrown away.

        Before any channel is open, some messages wait for one."""
        channel = self._events_channel()
        if channel is None:
            waiting = sum(map(len, self._unsent)) + len(text)
            if (
                self._closed
                or len(self._unsent) >= UNSENT_LIMIT
                or (self._unsent and waiting > UNSENT_LIMIT_CHARS)
            ):
                self._on_drop()
                return False
            self._unsent.append(text)
            return True
        if (
            channel.bufferedAmount > BUFFERED_LIMIT_BYTES
            or len(self._sctp._data_channel_queue) > BUFFERED_LIMIT
        ):
            self._on_drop()
            return False
        try:
            channel.send(text)
        except ValueError:  # longer than the client's max-message-size
            self._on_drop()
            return False
        return True

    def close(self) -> None:
        """Abort the association and stop its timers, for good."""
        if self._closed:
            return
        self._closed = True
        sctp = self._sctp
        try:
            _step(sctp.stop())
        finally:
            self._port.state = "closed"
            self._channels.clear()
            self._unsent.clear()
            # A task of aiortc's that is under way, or a packet that follows an ABORT, would
            # start T3 again for what is still unsent, and T3 never gives up.
            sctp._t3_cancel()
            sctp._sent_queue.clear()
            sctp._outbound_queue.clear()
            sctp._forward_tsn_chunk = None

    def _events_channel(self) -> RTCDataChannel | None:
        open_channels = [c for c in self._channels if c.readyState == "open"]
        for channel in open_channels:
            if channel.label == EVENTS_LABEL:
                return channel
        return open_channels[0] if open_channels else None

    def _opened(self, channel: RTCDataChannel) -> None:
        self._channels = [c for c in self._channels if c.readyState == "open"]
        self._channels.append(channel)

        def received(message: str | bytes) -> None:
            if isinstance(message, str):
                self._on_text(channel.label, message)

        channel.on("message", received)
        unsent, self._unsent = self._unsent, []
        for text in unsent:
            self.send_text(text)


def _step(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("SCTP waited for a transport that never waits")
