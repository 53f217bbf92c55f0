"""The backend protocol's frames."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.backend_frame import (
    MAX_PAYLOAD_BYTES,
    AudioFrame,
    BackendFrame,
    Clear,
    Cleared,
    Concealed,
    ConcealedHow,
    Dtmf,
    End,
    Event,
    FrameReader,
    FrameType,
    Mark,
    Played,
    Ready,
    Speech,
    Start,
    Stop,
    encode_frame,
    parse_payload,
)
from dataplane.proto.errors import BadPacket

EVERY_FRAME: list[tuple[BackendFrame, str]] = [
    (Concealed(1, 320, ConcealedHow.DTX), "1100000d" "0000000000000001" "00000140" "03"),
    (AudioFrame(b"\x01\x02\xff\x7f"), "10000004" "0102ff7f"),
    (AudioFrame(b""), "10000000"),
    (Event(b'{"a":1}'), "20000007" "7b2261223a317d"),
    (Dtmf("#"), "21000001" "23"),
    (Speech(True, 16000), "22000009" "01" "0000000000003e80"),
    (Played(7, 2**40, 20, 29980), "30000014" "00000007" "0000010000000000" "00000014" "0000751c"),
    (Mark("é"), "31000002" "c3a9"),
    (Clear(2**32 - 1), "32000004" "ffffffff"),
    (Cleared(6, 24000), "3300000c" "00000006" "0000000000005dc0"),
    (End(), "34000000"),
]  # fmt: skip


def bad(frame_type: int, payload: bytes) -> str:
    with pytest.raises(BadPacket) as caught:
        parse_payload(frame_type, payload)
    assert caught.value.reason == "backend_bad_frame"
    return caught.value.detail


@pytest.mark.parametrize(("frame", "text"), EVERY_FRAME)
def test_bytes_of_every_binary_frame(frame: BackendFrame, text: str) -> None:
    data = bytes.fromhex(text)
    assert frame.encode() == data
    [(frame_type, payload)] = FrameReader().feed(data)
    assert parse_payload(frame_type, payload) == frame


def test_start_is_what_backends_are_promised() -> None:
    start = Start("rtc_1", "echo", {"voice": "x"}, "127.0.0.1:5/udp")
    data = start.encode()
    assert data[0] == 0x01
    assert json.loads(data[4:]) == {
        "version": 1,
        "session_id": "rtc_1",
        "backend": "echo",
        "rates": [8000, 12000, 16000, 24000, 48000],
        "formats": ["pcm_s16le"],
        "options": {"voice": "x"},
        "client": {"address": "127.0.0.1:5/udp"},
    }
    assert parse_payload(FrameType.START, data[4:]) == start


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"session_id":1}', '{"client":3}'])
def test_malformed_start(text: str) -> None:
    bad(FrameType.START, text.encode())


def test_ready() -> None:
    assert parse_payload(FrameType.READY, b'{"rate_in":16000,"rate_out":24000,"x":1}') == Ready(
        16000, 24000
    )
    data = Ready(8000, 48000).encode()
    assert json.loads(data[4:]) == {"rate_in": 8000, "rate_out": 48000, "format": "pcm_s16le"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "JSON"),
        ("\xff", "JSON"),
        ("[16000,16000]", "object"),
        ('{"rate_in":16000}', "rate_out"),
        ('{"rate_in":44100,"rate_out":16000}', "rate_in"),
        ('{"rate_in":16000.0,"rate_out":16000}', "rate_in"),
        ('{"rate_in":true,"rate_out":16000}', "rate_in"),
        ('{"rate_in":"16000","rate_out":16000}', "rate_in"),
        ('{"rate_in":16000,"rate_out":16000,"format":"opus"}', "format"),
        ('{"rate_in":16000,"rate_out":16000,"format":[]}', "format"),
    ],
)
def test_ready_that_cannot_be_served(text: str, named: str) -> None:
    assert named in bad(FrameType.READY, text.encode("latin-1"))


def test_stop() -> None:
    assert parse_payload(FrameType.STOP, Stop("hangup").encode()[4:]) == Stop("hangup")
    assert parse_payload(FrameType.STOP, b"{}") == Stop("")
    bad(FrameType.STOP, b'{"reason":1}')
    bad(FrameType.STOP, b"")


@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        (FrameType.AUDIO, b"\x00"),
        (FrameType.CONCEALED, bytes(12)),
        (FrameType.CONCEALED, bytes(13)),  # how 0
        (FrameType.SPEECH, b"\x02" + bytes(8)),
        (FrameType.PLAYED, bytes(21)),
        (FrameType.CLEAR, b""),
        (FrameType.CLEAR, bytes(5)),
        (FrameType.CLEARED, bytes(11)),
        (FrameType.END, b"\x00"),
        (FrameType.MARK, b"\xff"),
        (FrameType.MARK, b"a" * 1025),
        (FrameType.DTMF, b""),
        (FrameType.DTMF, b"12"),
        (FrameType.DTMF, b"E"),
        (FrameType.DTMF, b"\xff"),
        (FrameType.EVENT, b""),
        (FrameType.EVENT, b"{"),
        (FrameType.EVENT, b"NaN"),
        (FrameType.EVENT, b'"\xff"'),
        (FrameType.EVENT, b"[" * 100_000),
    ],
)
def test_malformed_payloads(frame_type: FrameType, payload: bytes) -> None:
    bad(frame_type, payload)


def test_event_may_be_any_json_value_and_passes_as_it_came() -> None:
    for text in (b'{"b":1,\n "a":[1.0]}', b"[]", b'"x"', b"null"):
        event = parse_payload(FrameType.EVENT, text)
        assert event == Event(text)
        assert isinstance(event, Event)
        assert event.value == json.loads(text)


def test_unknown_types_are_ignored() -> None:
    assert parse_payload(0x7F, b"whatever") is None


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(FrameType), st.binary(max_size=40))
def test_any_payload_parses_or_is_a_bad_frame(frame_type: FrameType, payload: bytes) -> None:
    reason = "backend_bad_frame"
    try:
        frame = parse_payload(frame_type, payload)
    except BadPacket as error:
        reason = error.reason
    else:
        assert frame is not None
        # What is read is what was written, but for JSON's freedoms.
        if not isinstance(frame, Start | Ready | Stop):
            assert frame.encode() == encode_frame(frame_type, payload)
    assert reason == "backend_bad_frame"


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=10),
    st.integers(0, 2**32),
)
def test_a_stream_cut_anywhere_gives_the_same_frames(
    frames: list[tuple[int, bytes]], seed: int
) -> None:
    rng = random.Random(seed)
    stream = b"".join(encode_frame(frame_type, payload) for frame_type, payload in frames)
    reader = FrameReader()
    got = []
    offset = 0
    while offset < len(stream):
        step = rng.choice((1, 2, 3, 5, 50, 1000))
        got += reader.feed(stream[offset : offset + step])
        offset += step
    assert got == frames
    assert FrameReader().feed(stream) == frames


def test_the_largest_frame_passes_in_pieces() -> None:
    payload = bytes(MAX_PAYLOAD_BYTES)
    stream = encode_frame(FrameType.AUDIO, payload)
    reader = FrameReader()
    got = []
    for offset in range(0, len(stream), 65536):
        got += reader.feed(stream[offset : offset + 65536])
    assert got == [(FrameType.AUDIO, payload)]
    with pytest.raises(ValueError, match="payload"):
        encode_frame(FrameType.AUDIO, bytes(MAX_PAYLOAD_BYTES + 1))


def test_a_header_over_the_limit_ends_the_stream() -> None:
    header = (FrameType.AUDIO << 24 | MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big")
    reader = FrameReader()
    assert reader.feed(header[:3]) == []
    with pytest.raises(BadPacket) as caught:
        reader.feed(header[3:])
    assert caught.value.reason == "backend_bad_frame"
