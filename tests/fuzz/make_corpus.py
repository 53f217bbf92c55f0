"""Writes the seeds of the kernel's fuzz targets: ``python -m tests.fuzz.make_corpus``.

They are committed. A crash that was found goes beside them, named for what it
was, and stays.
"""

from __future__ import annotations

import base64
from pathlib import Path

from dataplane.proto.address import Address
from dataplane.proto.hop import HopHeader, HopRecord, encode_hop
from dataplane.proto.siphash import siphash24
from tests.kernel.stun_messages import (
    MESSAGE_INTEGRITY,
    PRIORITY,
    SOFTWARE,
    USERNAME,
    attribute,
    message,
)

CORPUS = Path(__file__).parent / "corpus"
KEY = bytes(range(16))  # as in fuzz_stun_peek.c


def signed_ufrag(key_id: int) -> bytes:
    body = bytes([0x10 | key_id]) + bytes(range(9))
    return base64.b64encode(body + siphash24(KEY, body).to_bytes(8, "little"))


def stun_seeds() -> dict[str, bytes]:
    name = attribute(USERNAME, signed_ufrag(0) + b":abcd")
    integrity = attribute(MESSAGE_INTEGRITY, bytes(20))
    return {
        "check": message(name, attribute(PRIORITY, bytes(4)), integrity),
        "other_key": message(attribute(USERNAME, signed_ufrag(7) + b":efgh"), integrity),
        "software_first": message(attribute(SOFTWARE, b"x" * 13), name, integrity),
        "foreign": message(attribute(USERNAME, b"evtj:h6vY"), integrity),
        "response": message(integrity, kind=0x0101),
        "bare": message(),
    }


def hop_seeds() -> dict[str, bytes]:
    client = Address.from_text("192.0.2.1", 40000)
    check = HopRecord(9, client, bytes(16), 1, 2, 3, b"first")
    media = HopRecord(4, client, bytes(range(16)), 1, 0xFFFFFF, 0xFFFFFF, b"\x80" * 100)
    return {
        "one": encode_hop(HopHeader(1, 0, 1, 0, 1), [check]),
        "three": encode_hop(HopHeader(3, 63, 2**32 - 1, 2**64 - 1, 2), [check, media, media]),
    }


def flow_seeds() -> dict[str, bytes]:
    return {
        "each_once": bytes(value for client in range(64) for value in (client, client)),
        "same_again": bytes([5, 1, 5, 2, 6, 3, 5, 4] * 8),
    }


def main() -> None:
    seeds = {"stun_peek": stun_seeds(), "hop": hop_seeds(), "flow_table": flow_seeds()}
    for target, files in seeds.items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (CORPUS / target / name).write_bytes(data)


if __name__ == "__main__":
    main()
