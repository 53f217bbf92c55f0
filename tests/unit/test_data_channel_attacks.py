"""Data channels against a client that has keys, and means harm with them."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterator

import pytest
from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcsctptransport import (
    AbortChunk,
    Chunk,
    DataChunk,
    HeartbeatChunk,
    RTCSctpCapabilities,
    RTCSctpTransport,
    SackChunk,
    serialize_packet,
)
from google_crc32c import value as crc32c

from dataplane.workers.data_channel import DataChannels, DtlsPort, _step

FIRST, LAST, UNORDERED = 2, 1, 4
STRING = 51


class Client:
    """The other end: aiortc's SCTP for what is honest, forged packets for the rest."""

    def __init__(self) -> None:
        self.to_edge: list[bytes] = []
        self.to_client: list[bytes] = []
        self.texts: list[str] = []
        self.heard: list[str] = []
        self.sctp = RTCSctpTransport(DtlsPort(True, self.to_edge.append))  # type: ignore[arg-type]
        self.channel = RTCDataChannel(self.sctp, RTCDataChannelParameters(label="oai-events"))
        self.channel.on("message", self.heard.append)
        self.edge = DataChannels(
            is_client=False,
            remote_port=5000,
            max_message_bytes=262_144,
            send=self.to_client.append,
            on_text=lambda _label, text: self.texts.append(text),
            on_drop=self._count_drop,
        )
        self._next_tsn = 0
        self.drops = 0

    def _count_drop(self) -> None:
        self.drops += 1

    async def connect(self) -> Client:
        _step(self.sctp.start(RTCSctpCapabilities(maxMessageSize=262_144), 5000))
        await self.exchange()
        assert self.channel.readyState == "open"
        await self.say("hello")
        self._next_tsn = self.sctp._local_tsn
        return self

    async def exchange(self) -> None:
        """Until nobody has anything to say."""
        for _ in range(5):
            while self.to_edge or self.to_client:
                for packet in self.to_client[:]:
                    self.to_client.remove(packet)
                    _step(self.sctp._handle_data(packet))
                for packet in self.to_edge[:]:
                    self.to_edge.remove(packet)
                    self.edge.handle_data(packet)
            await asyncio.sleep(0)

    async def say(self, text: str) -> None:
        self.channel.send(text)
        await self.exchange()
        assert self.texts[-1] == text

    def packet(self, *chunks: bytes, tag: int | None = None) -> bytes:
        tag = self.sctp._remote_verification_tag if tag is None else tag
        header = struct.pack("!HHL", 5000, 5000, tag)
        body = b"".join(chunks)
        return header + struct.pack("<L", crc32c(header + bytes(4) + body)) + body

    def forge(self, *chunks: Chunk) -> None:
        self.edge.handle_data(self.packet(*(bytes(chunk) for chunk in chunks)))

    def data(self, tsn: int, flags: int, stream: int = 7, text: bytes = b"x") -> DataChunk:
        chunk = DataChunk(flags)
        chunk.tsn = tsn & 0xFFFFFFFF
        chunk.stream_id, chunk.stream_seq, chunk.protocol = stream, 0, STRING
        chunk.user_data = text
        return chunk

    def next_data(self, flags: int, stream: int = 7, text: bytes = b"x") -> DataChunk:
        self._next_tsn += 1
        return self.data(self._next_tsn - 1, flags, stream, text)


@pytest.fixture
async def client() -> Client:
    return await Client().connect()


def raw_chunk(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, 4 + len(body)) + body


def held(client: Client) -> int:
    sctp = client.edge._sctp
    return sum(len(stream.reassembly) for stream in sctp._inbound_streams.values())


def armed_timers(sctp: RTCSctpTransport) -> Iterator[str]:
    for name in ("_t1_handle", "_t2_handle", "_t3_handle", "_reconfig_handle"):
        if getattr(sctp, name) is not None:
            yield name


@pytest.mark.parametrize("kind", [4, 5, 6, 9, 130])
@pytest.mark.parametrize("length", [0, 1, 3])
async def test_a_parameter_without_length_is_no_endless_loop(
    client: Client, kind: int, length: int
) -> None:
    client.edge.handle_data(client.packet(raw_chunk(kind, struct.pack("!HH", 1, length))))
    assert client.drops == 1
    await client.say("still here")


@pytest.mark.parametrize("kind", [1, 2])
async def test_nor_is_one_in_init(client: Client, kind: int) -> None:
    body = struct.pack("!LLHHL", 1, 100_000, 10, 10, 1) + struct.pack("!HH", 7, 0)
    client.edge.handle_data(client.packet(raw_chunk(kind, body), tag=0))
    await client.say("still here")


async def test_a_sack_of_everything_costs_nothing(client: Client) -> None:
    sack = SackChunk()
    sack.cumulative_tsn = client.edge._sctp._last_sacked_tsn
    sack.advertised_rwnd = 100_000
    sack.gaps = [(1, 65_535)] * 400
    before = time.process_time()
    client.forge(sack)
    # 26 million steps of aiortc's would take seconds; this is no measurement.
    assert time.process_time() - before < 1.0
    await client.say("still here")


async def test_packets_far_ahead_are_not_kept(client: Client) -> None:
    first = client._next_tsn
    for n in range(40):
        client.forge(*(client.data(first + 2 + 90 * n + i, FIRST) for i in range(60)))
    assert len(client.edge._sctp._sack_misordered) <= 256
    assert held(client) <= 512


async def test_a_message_without_end_ends_the_channels_only(client: Client) -> None:
    client.forge(client.next_data(FIRST))
    for _ in range(100):
        client.forge(*(client.next_data(0) for _ in range(60)))
    assert held(client) <= 600
    assert not client.edge.send_text("into the void")
    assert not list(armed_timers(client.edge._sctp))


async def test_nor_do_streams_pile_up(client: Client) -> None:
    for stream in range(0, 6000, 60):
        client.forge(*(client.next_data(FIRST, stream + i) for i in range(60)))
    assert len(client.edge._sctp._inbound_streams) <= 200


async def test_nor_do_channels(client: Client) -> None:
    opened = struct.pack("!BBHLHH", 3, 0, 0, 0, 1, 0) + b"x"
    for stream in range(8, 4000, 20):
        chunks = [client.next_data(FIRST | LAST, stream + i, opened) for i in range(20)]
        for chunk in chunks:
            chunk.protocol = 50
        client.forge(*chunks)
    assert len(client.edge._sctp._data_channels) <= 200
    assert len(client.edge._channels) <= 200


async def test_a_large_message_arrives(client: Client) -> None:
    await client.say("x" * 262_000)


async def test_no_timer_lives_on_after_the_call(client: Client) -> None:
    """The client acknowledges nothing, aborts, and then acknowledges a part."""
    edge = client.edge._sctp
    for n in range(8):
        client.edge.send_text(f"{n}" * 3000)
    await asyncio.sleep(0)
    assert edge._t3_handle is not None
    sack = SackChunk()
    sack.cumulative_tsn = edge._sent_queue[0].tsn
    sack.advertised_rwnd = 100_000
    client.forge(AbortChunk(), sack)
    client.forge(sack)
    client.edge.close()
    await asyncio.sleep(0)
    assert not list(armed_timers(edge))


async def test_a_timer_that_ran_out_as_the_call_ended_starts_no_other(client: Client) -> None:
    edge = client.edge._sctp
    client.edge.send_text("x" * 3000)
    await asyncio.sleep(0)
    edge._t3_expired()  # leaves a task behind that sends again
    client.edge.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not list(armed_timers(edge))


async def test_what_waits_for_a_channel_is_bounded() -> None:
    client = Client()
    for _ in range(60):
        client.edge.send_text("x" * 100_000)
    assert sum(len(text) for text in client.edge._unsent) <= 1 << 20
    client.edge.close()


async def test_honest_heartbeats_are_answered(client: Client) -> None:
    beat = HeartbeatChunk()
    beat.params = [(1, b"abcdefg")]
    client.edge.handle_data(
        serialize_packet(5000, 5000, client.sctp._remote_verification_tag, beat)
    )
    assert client.to_client
    await client.say("still here")
