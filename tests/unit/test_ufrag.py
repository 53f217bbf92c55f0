from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.proto.errors import BadPacket
from dataplane.proto.siphash import siphash24
from dataplane.proto.ufrag import ClusterKeys, Ufrag, encode_ufrag, ice_pwd, parse_ufrag

VECTORS = Path(__file__).parent.parent / "vectors"
KEYS = ClusterKeys({0: bytes(range(32)), 1: b"\xaa" * 16}, active=0)
UFRAG = Ufrag(key_id=0, node_id=258, worker=3, slot=0x040506, generation=0x070809)


def foreign(text: bytes, keys: ClusterKeys = KEYS) -> None:
    with pytest.raises(BadPacket) as caught:
        parse_ufrag(text, keys)
    assert caught.value.reason == "drop_stun_foreign_ufrag"


def test_siphash_reference_vectors() -> None:
    """vectors_sip64 of the reference implementation: input i is the bytes 0..i-1."""
    vectors = json.loads((VECTORS / "siphash24.json").read_text())
    key = bytes(range(16))
    for length, expected in enumerate(vectors):
        assert siphash24(key, bytes(range(length))).to_bytes(8, "little").hex() == expected


def test_known_answer() -> None:
    """Pinned: every relay of a fleet must make the same of the same key, whatever its release."""
    known = json.loads((VECTORS / "ufrag.json").read_text())
    for row in known:
        keys = ClusterKeys.from_text(row["cluster_keys"])
        fields = Ufrag(**row["fields"])
        assert encode_ufrag(fields, keys) == row["ufrag"]
        assert parse_ufrag(row["ufrag"].encode(), keys) == fields
        assert ice_pwd(row["ufrag"], keys) == row["ice_pwd"]
        assert keys.mac_key(fields.key_id).hex() == row["mac_key"]


def test_layout() -> None:
    raw = base64.b64decode(encode_ufrag(UFRAG, KEYS))
    assert raw[:10] == bytes([0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert raw[10:] == siphash24(KEYS.mac_key(0), raw[:10]).to_bytes(8, "little")


@given(
    st.builds(
        Ufrag,
        key_id=st.sampled_from([0, 1]),
        node_id=st.integers(0, 0xFFFF),
        worker=st.integers(0, 0xFF),
        slot=st.integers(0, 0xFFFFFF),
        generation=st.integers(0, 0xFFFFFF),
    )
)
def test_round_trip(ufrag: Ufrag) -> None:
    text = encode_ufrag(ufrag, KEYS)
    assert re.fullmatch(r"[A-Za-z0-9+/]{24}", text)
    assert parse_ufrag(text.encode(), KEYS) == ufrag
    assert re.fullmatch(r"[A-Za-z0-9+/]{24}", ice_pwd(text, KEYS))


def test_every_flipped_bit_is_foreign() -> None:
    raw = base64.b64decode(encode_ufrag(UFRAG, KEYS))
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        foreign(base64.b64encode(bytes(flipped)))


def test_every_length_but_24_is_foreign() -> None:
    text = encode_ufrag(UFRAG, KEYS).encode()
    for length in range(24):
        foreign(text[:length])
    foreign(text + b"A")
    foreign(text + b"=")
    foreign(text[:22] + b"==")


@given(st.binary(max_size=40))
def test_any_bytes_are_foreign(text: bytes) -> None:
    foreign(text)


@pytest.mark.parametrize("char", [b"-", b"_", b" ", b"\n", b"=", b"\x00", b"\xff"])
def test_only_the_standard_alphabet(char: bytes) -> None:
    text = encode_ufrag(UFRAG, KEYS).encode()
    foreign(text[:5] + char + text[6:])


def test_version_and_unknown_key_are_foreign() -> None:
    body = bytes([0x20]) + bytes(9)
    mac = siphash24(KEYS.mac_key(0), body).to_bytes(8, "little")
    foreign(base64.b64encode(body + mac))
    foreign(encode_ufrag(UFRAG, KEYS).encode(), ClusterKeys({1: b"\xaa" * 16}, 1))
    foreign(encode_ufrag(UFRAG, KEYS).encode(), ClusterKeys({0: b"another secret!!"}, 0))


def test_password_depends_on_every_part() -> None:
    one = encode_ufrag(UFRAG, KEYS)
    other = encode_ufrag(Ufrag(0, 258, 3, 0x040506, 0x07080A), KEYS)
    assert ice_pwd(one, KEYS) != ice_pwd(other, KEYS)
    assert ice_pwd(one, KEYS) != ice_pwd(one, ClusterKeys({0: bytes(32)}, 0))
    for text in ("", "short", "!" * 24, one[:22] + "=="):
        with pytest.raises(ValueError, match=r"."):
            ice_pwd(text, KEYS)


def test_keys_as_text() -> None:
    keys = ClusterKeys({3: bytes(16), 1: b"\x11" * 20}, active=3)
    assert keys.to_text() == f"3:{'00' * 16},1:{'11' * 20}"
    again = ClusterKeys.from_text(keys.to_text())
    assert again.active == 3
    assert sorted(again.key_ids) == [1, 3]
    assert again.mac_key(1) == keys.mac_key(1)
    assert "11" * 20 not in repr(keys)


@pytest.mark.parametrize(
    "text",
    ["", "0", "0:zz", "0:00", f"16:{'00' * 16}", f"-1:{'00' * 16}", f"0:{'00' * 16},0:{'11' * 16}"],
)
def test_keys_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ClusterKeys.from_text(text)


def test_active_key_must_exist() -> None:
    with pytest.raises(ValueError, match="active"):
        ClusterKeys({0: bytes(16)}, active=1)


@pytest.mark.parametrize(
    "fields", [(16, 0, 0, 0, 1), (0, 65536, 0, 0, 1), (0, 0, 256, 0, 1), (0, 0, 0, 1 << 24, 1)]
)
def test_fields_that_do_not_fit(fields: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(OverflowError):
        encode_ufrag(Ufrag(*fields), KEYS)
