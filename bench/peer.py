"""A synthetic WebRTC client over a real socket: ICE, DTLS, SRTP, Opus packets.

``await peer.connect(...)`` does what a browser does between ``createOffer`` and
the first audio. Each step can also be taken singly (``post_offer``, ``check``,
``start_dtls``, ``send_datagram``), which is how attack tests misbehave.

The protocol logic is dataplane.proto's, except for STUN (aioice's codec): this
file owns the socket and the clock. A peer costs one descriptor and, with
``record=False``, no memory per packet, so that one process drives hundreds.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from bench.binding_check import (
    TRANSACTION_ID_BYTES,
    CheckResponse,
    answer_check,
    encode_check,
    parse_check_response,
)
from bench.certificate import Certificate, shared_certificate
from bench.media import FRAME_NS, MediaStream
from bench.offer import Answer, Offer, parse_answer
from dataplane.proto.demux import Demux, classify
from dataplane.proto.dtls import DtlsEndpoint
from dataplane.proto.errors import BadPacket
from dataplane.proto.srtp import SrtpSession

if TYPE_CHECKING:
    from bench.channel import PeerChannel

CONSENT_INTERVAL_S = 2.5  # what libwebrtc does on a stable pair
RTCP_INTERVAL_S = 1.0
CHECK_RETRY_S = 0.1  # a new transaction each time, as libwebrtc pings
DATAGRAM_BYTES = 2048
RECEIVE_BUFFER_BYTES = 1 << 20


class PeerError(Exception):
    """The server under test did not do what a client needs."""


@dataclass
class Timeline:
    """When each step of the set-up was done, CLOCK_MONOTONIC ns; 0: not yet."""

    post_ns: int = 0
    answered_ns: int = 0
    stun_ns: int = 0
    dtls_ns: int = 0
    first_audio_ns: int = 0

    def milliseconds(self) -> dict[str, float]:
        """Each step's time since the POST began, in ms; steps not reached are left out."""
        steps = {
            "answer": self.answered_ns,
            "stun": self.stun_ns,
            "dtls": self.dtls_ns,
            "first_audio": self.first_audio_ns,
        }
        return {name: (ns - self.post_ns) / 1e6 for name, ns in steps.items() if ns}


@dataclass
class PeerCounters:
    """What went over the socket and what of it was no use."""

    sent_datagrams: int = 0
    received_datagrams: int = 0
    checks_sent: int = 0
    checks_answered: int = 0
    unauthentic_responses: int = 0
    bad_packets: dict[str, int] = field(default_factory=dict)
    """Datagrams from the server that did not verify, by BadPacket reason."""


class Peer:
    """One client of one call. Create it inside a running event loop."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        certificate: Certificate | None = None,
        record: bool = True,
        data_channel: bool = False,
        full_ice: bool = False,
    ) -> None:
        """host: the local address to bind, IPv4 or IPv6. record: keep every received packet.
        full_ice: put a candidate into the offer, for servers that want one."""
        self.certificate = certificate or shared_certificate()
        self.ufrag = secrets.token_urlsafe(3).replace("-", "x").replace("_", "y")
        self.pwd = secrets.token_hex(12)
        self.tie_breaker = secrets.randbits(63)
        self.media = MediaStream(record=record, cname=self.ufrag)
        self.timeline = Timeline()
        self.counters = PeerCounters()
        self.answer: Answer | None = None
        self.call_id = ""
        self.hangup_url = ""
        self.remote: tuple[str, int] | None = None
        self.dtls: DtlsEndpoint | None = None
        self.channel: PeerChannel | None = None
        self.last_error_code = 0
        """Of the latest authentic STUN error response; 403: the server ended the call."""
        self._ipv6 = ":" in host
        self._data_channel = data_channel
        self._full_ice = full_ice
        self._loop = asyncio.get_running_loop()
        self._checks: dict[bytes, asyncio.Future[CheckResponse]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._dtls_connected: asyncio.Future[None] = self._loop.create_future()
        self._first_audio: asyncio.Future[None] = self._loop.create_future()
        self.sock = self._open_socket(host)

    def _open_socket(self, host: str) -> socket.socket:
        family = socket.AF_INET6 if self._ipv6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind((host, 0))
        self._loop.add_reader(sock, self._on_readable)
        return sock

    # Set-up, step by step

    def offer(self) -> Offer:
        """What this peer announces."""
        host, port = self.sock.getsockname()[:2]
        return Offer(
            ufrag=self.ufrag,
            pwd=self.pwd,
            fingerprint=self.certificate.fingerprint,
            ssrc=self.media.ssrc,
            data_channel=self._data_channel,
            candidates=((host, port),) if self._full_ice else (),
        )

    async def connect(
        self,
        http: aiohttp.ClientSession,
        base_url: str,
        model: str,
        *,
        options: str | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """The whole set-up, to the point where audio may be sent. PeerError when it fails."""
        async with asyncio.timeout(timeout_s):
            await self.post_offer(http, base_url, model, options=options)
            await self.establish()

    async def establish(self) -> None:
        """What follows the answer: a nominating check, DTLS, then consent and RTCP timers, and
        the data channel if one was offered (it may open later)."""
        self.start_dtls()
        response = await self.check()
        if not response.ok:
            raise PeerError(f"check refused with {response.error_code}")
        await self._dtls_connected
        if self._data_channel:
            await self._open_channel()
        self._repeat("consent", CONSENT_INTERVAL_S, self.send_check)
        self._repeat("rtcp", RTCP_INTERVAL_S, self.send_rtcp)

    async def post_offer(
        self,
        http: aiohttp.ClientSession,
        base_url: str,
        model: str,
        *,
        options: str | None = None,
    ) -> Answer:
        """POSTs the offer, reads the answer and aims the socket at its candidate.

        options: JSON for the multipart ``session`` part; plain application/sdp without.
        """
        text = self.offer().text()
        headers: dict[str, str] = {}
        data: aiohttp.FormData | str = text
        if options is None:
            headers["Content-Type"] = "application/sdp"
        else:
            data = aiohttp.FormData()
            data.add_field("sdp", text, content_type="application/sdp")
            data.add_field("session", options, content_type="application/json")
        self.timeline.post_ns = time.monotonic_ns()
        url = f"{base_url}/v1/realtime/calls"
        async with http.post(url, params={"model": model}, data=data, headers=headers) as response:
            body = await response.text()
            if response.status != 201:
                raise PeerError(f"POST {url}: {response.status} {body}")
            location = response.headers["Location"]
        self.timeline.answered_ns = time.monotonic_ns()
        self.call_id = location.rpartition("/")[2]
        self.hangup_url = f"{base_url}{location}/hangup"
        self.use_answer(parse_answer(body))
        return self.answer or parse_answer(body)

    def use_answer(self, answer: Answer) -> None:
        """Takes the answer's credentials and aims at its first candidate of our family."""
        self.answer = answer
        candidate = answer.candidate(ipv6=self._ipv6)
        self.aim(candidate.host, candidate.port)

    def aim(self, host: str, port: int) -> None:
        """Sends to that address, and takes datagrams from it alone, from now on."""
        self.sock.connect((host, port))
        self.remote = (host, port)

    def start_dtls(self) -> None:
        """Readies DTLS in the role that the answer leaves us: the server's for setup:active."""
        answer = self._require_answer()
        self.dtls = DtlsEndpoint(
            self.certificate.certificate_pem,
            self.certificate.private_key_pem,
            answer.fingerprint_algorithm,
            answer.fingerprint,
            is_client=answer.setup == "passive",
        )
        self.dtls.start(time.monotonic_ns())
        self._flush_dtls()

    async def check(self, *, use_candidate: bool = True, timeout_s: float = 5.0) -> CheckResponse:
        """Sends checks until one is answered authentically. PeerError when none is."""
        deadline = self._loop.time() + timeout_s
        answered: list[asyncio.Future[CheckResponse]] = []
        while self._loop.time() < deadline:
            answered.append(self._checks[self.send_check(use_candidate=use_candidate)])
            done, _ = await asyncio.wait(
                answered, timeout=CHECK_RETRY_S, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return done.pop().result()
        raise PeerError(f"no STUN response in {timeout_s} s from {self.remote}")

    async def _open_channel(self) -> None:
        from bench.channel import PeerChannel  # aiortc, 20 MB that most peers do without

        answer = self._require_answer()
        self.channel = PeerChannel(
            "oai-events", dtls_is_client=answer.setup == "passive", send=self._send_sctp
        )
        if answer.sctp_port is None:
            raise PeerError("the answer rejects the data channel")
        await self.channel.start(answer.sctp_port)

    def _send_sctp(self, packet: bytes) -> None:
        if self.dtls is not None and self.dtls.state == "connected":
            self.dtls.send_app_data(packet)
            self._flush_dtls()

    def send_check(self, *, use_candidate: bool = True) -> bytes:
        """Sends one check and returns its transaction id."""
        answer = self._require_answer()
        transaction_id = secrets.token_bytes(TRANSACTION_ID_BYTES)
        self._checks[transaction_id] = self._loop.create_future()
        while len(self._checks) > 64:  # forget the oldest that were never answered
            del self._checks[next(iter(self._checks))]
        self.send_datagram(
            encode_check(
                f"{answer.ufrag}:{self.ufrag}",
                answer.pwd,
                tie_breaker=self.tie_breaker,
                use_candidate=use_candidate,
                transaction_id=transaction_id,
            )
        )
        self.counters.checks_sent += 1
        return transaction_id

    async def hang_up(self, http: aiohttp.ClientSession) -> int:
        """Asks the control plane to end the call; returns the HTTP status."""
        async with http.post(self.hangup_url) as response:
            return response.status

    def close(self, *, notify: bool = True) -> None:
        """Leaves: DTLS close_notify unless told otherwise, then the socket is gone."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if notify and self.dtls is not None and self.dtls.state == "connected":
            self.dtls.close(time.monotonic_ns())
            self._flush_dtls()
        for timer in self._timers.values():  # flushing may have set one
            timer.cancel()
        self._loop.remove_reader(self.sock)
        self.sock.close()
        self._dtls_connected.cancel()
        self._first_audio.cancel()
        for check in self._checks.values():
            check.cancel()

    async def heard(self) -> None:
        """Waits for the first audio packet from the server."""
        await asyncio.shield(self._first_audio)

    # Sending

    def send_datagram(self, datagram: bytes) -> None:
        """Sends raw bytes to the server. A full socket or a refusal loses them, as a network
        would."""
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self.sock.send(datagram)
            self.counters.sent_datagrams += 1

    def send_audio(self, payload: bytes, *, marker: bool = False) -> bytes:
        """Sends one Opus packet of 20 ms; returns the protected datagram."""
        datagram = self.media.protect_audio(payload, time.monotonic_ns(), marker=marker)
        self.send_datagram(datagram)
        return datagram

    async def play(self, packets: Sequence[bytes]) -> None:
        """Sends packets 20 ms apart on absolute deadlines, the first at once."""
        start = time.monotonic_ns()
        for index, payload in enumerate(packets):
            wait_ns = start + index * FRAME_NS - time.monotonic_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / 1e9)
            self.send_audio(payload, marker=index == 0)

    def send_rtcp(self) -> None:
        """A sender report with a reception block, and our CNAME."""
        self.send_datagram(self.media.protect_report(time.monotonic_ns(), time.time_ns()))

    # Receiving

    def _on_readable(self) -> None:
        """Reads one datagram: epoll calls again while there are more, and asking once too often
        costs a system call per packet."""
        try:
            if self.remote is None:
                self._answer_early(*self.sock.recvfrom(DATAGRAM_BYTES))
                return
            datagram = self.sock.recv(DATAGRAM_BYTES)
        except (BlockingIOError, ConnectionRefusedError):
            return
        self.counters.received_datagrams += 1
        try:
            self.handle_datagram(datagram, time.monotonic_ns())
        except BadPacket as bad:
            reasons = self.counters.bad_packets
            reasons[bad.reason] = reasons.get(bad.reason, 0) + 1

    def handle_datagram(self, datagram: bytes, now_ns: int) -> None:
        """One datagram from the server. BadPacket when it does not verify."""
        kind = classify(datagram)
        if kind == Demux.RTP:
            is_audio = self.media.handle_datagram(datagram, now_ns, time.time_ns())
            if is_audio and not self.timeline.first_audio_ns:
                self.timeline.first_audio_ns = now_ns
                if not self._first_audio.done():
                    self._first_audio.set_result(None)
        elif kind == Demux.STUN:
            self._handle_stun(datagram, now_ns)
        elif kind == Demux.DTLS and self.dtls is not None:
            try:
                self.dtls.handle_datagram(datagram, now_ns)
            finally:
                self._flush_dtls()
        else:
            raise BadPacket("drop_demux")

    def _answer_early(self, datagram: bytes, source: tuple[str, int]) -> None:
        """A full ICE agent checks us as soon as it has our offer: before we have its answer."""
        if reply := answer_check(datagram, source[:2], self.pwd):
            self.sock.sendto(reply, source)

    def _handle_stun(self, datagram: bytes, now_ns: int) -> None:
        answer = self._require_answer()
        response = parse_check_response(datagram, answer.pwd, now_ns)
        if response is None:
            if self.remote and (reply := answer_check(datagram, self.remote, self.pwd)):
                self.send_datagram(reply)
            return
        if not response.authentic:
            self.counters.unauthentic_responses += 1
            return
        waiting = self._checks.pop(response.transaction_id, None)
        if waiting is None:
            return
        self.counters.checks_answered += 1
        if not waiting.done():
            waiting.set_result(response)
        if response.error_code:
            self.last_error_code = response.error_code
        elif not self.timeline.stun_ns:
            self.timeline.stun_ns = now_ns

    def _flush_dtls(self) -> None:
        """Sends what DTLS has to say, notices its state, sets its retransmission timer."""
        dtls = self.dtls
        if dtls is None:
            return
        for datagram in dtls.poll_transmit():
            self.send_datagram(datagram)
        for packet in dtls.poll_app_data():
            if self.channel is not None:
                self.channel.handle_data(packet)
        if not self._dtls_connected.done():
            if dtls.state == "connected":
                self.media.srtp = SrtpSession(dtls.srtp_profile, *dtls.srtp_keys())
                self.timeline.dtls_ns = time.monotonic_ns()
                self._dtls_connected.set_result(None)
            elif dtls.state in ("failed", "closed"):
                self._dtls_connected.set_exception(PeerError(f"DTLS {dtls.state}: {dtls.failure}"))
        self._set_dtls_timer(dtls)

    def _set_dtls_timer(self, dtls: DtlsEndpoint) -> None:
        if timer := self._timers.pop("dtls", None):
            timer.cancel()
        due_ns = dtls.next_timeout()
        if due_ns is not None:
            delay_s = max(0, due_ns - time.monotonic_ns()) / 1e9
            self._timers["dtls"] = self._loop.call_later(delay_s, self._on_dtls_timer)

    def _on_dtls_timer(self) -> None:
        if self.dtls is not None:
            self.dtls.handle_timer(time.monotonic_ns())
            self._flush_dtls()

    def _repeat(self, name: str, interval_s: float, action: Callable[[], object]) -> None:
        action()
        self._timers[name] = self._loop.call_later(
            interval_s, self._repeat, name, interval_s, action
        )

    def _require_answer(self) -> Answer:
        if self.answer is None:
            raise PeerError("there is no answer yet")
        return self.answer
