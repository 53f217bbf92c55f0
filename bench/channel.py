"""A peer's data channel: aiortc's SCTP over the peer's DTLS, imported only when asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcsctptransport import RTCSctpCapabilities, RTCSctpTransport

from dataplane.workers.data_channel import DtlsPort

MAX_MESSAGE_BYTES = 262_144  # what our offer says


class PeerChannel:
    """One data channel that the client opens, as browsers' SDKs do."""

    def __init__(self, label: str, *, dtls_is_client: bool, send: Callable[[bytes], None]) -> None:
        """send: takes SCTP packets, for DTLS to encrypt."""
        self._port = DtlsPort(dtls_is_client, send)
        self._sctp = RTCSctpTransport(self._port)  # type: ignore[arg-type]  # has all it uses
        self._tasks: set[asyncio.Task[None]] = set()
        self.messages: list[str | bytes] = []
        """What the server sent, oldest first."""
        self.channel = RTCDataChannel(self._sctp, RTCDataChannelParameters(label=label))
        self.channel.on("message", self.messages.append)

    async def start(self, remote_port: int) -> None:
        """Begins the association; the channel can be used once its readyState is "open"."""
        await self._sctp.start(RTCSctpCapabilities(maxMessageSize=MAX_MESSAGE_BYTES), remote_port)

    def send_text(self, text: str) -> None:
        self.channel.send(text)

    def handle_data(self, data: bytes) -> None:
        """One SCTP packet that DTLS decrypted."""
        if self._port.receiver is not None:
            task = asyncio.ensure_future(self._sctp._handle_data(data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Aborts the association and stops its timers."""
        await self._sctp.stop()
        self._port.state = "closed"
