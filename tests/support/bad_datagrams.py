"""Datagrams that nobody should send: random, truncated, mutated, replayed. Seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

# Past the 2,048 bytes that the edge reads, so that oversize is met too.
LONGEST_BYTES = 2300


def bad_datagrams(seed: int, templates: Sequence[bytes]) -> Iterator[bytes]:
    """Endless. templates: real datagrams of a call (STUN, DTLS, SRTP, SRTCP), none empty;
    what is made of them is never a template whole, except when it is replayed."""
    rng = random.Random(seed)
    makers: tuple[Callable[[random.Random, bytes], bytes], ...] = (
        _noise,
        _noise_of_a_class,
        _truncated,
        _extended,
        _bits_flipped,
        _bytes_replaced,
        _length_field_wrong,
        _spliced,
    )
    weights = (2, 3, 3, 1, 4, 3, 2, 2)
    while True:
        for maker in rng.choices(makers, weights, k=64):
            template = rng.choice(templates)
            datagram = maker(rng, template)
            yield datagram if datagram != template else _noise(rng, template)


def _noise(rng: random.Random, template: bytes) -> bytes:
    return rng.randbytes(_length(rng))


def _noise_of_a_class(rng: random.Random, template: bytes) -> bytes:
    """Random but for a first byte that RFC 7983 gives to STUN, DTLS or RTP; STUN with its
    magic cookie, so that it gets further."""
    first = rng.choice((0, 1, 20, 21, 22, 23, 63, 128, 144, 191))
    rest = rng.randbytes(_length(rng))
    if first < 4 and len(rest) > 19:
        rest = b"\x01" + len(rest[19:]).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + rest[7:]
    return bytes((first,)) + rest


def _truncated(rng: random.Random, template: bytes) -> bytes:
    return template[: rng.randrange(len(template))]


def _extended(rng: random.Random, template: bytes) -> bytes:
    return template + rng.randbytes(rng.randint(1, 64))


def _bits_flipped(rng: random.Random, template: bytes) -> bytes:
    datagram = bytearray(template)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        datagram[rng.randrange(len(datagram))] ^= 1 << rng.randrange(8)
    return bytes(datagram)


def _bytes_replaced(rng: random.Random, template: bytes) -> bytes:
    at = rng.randrange(len(template))
    run = rng.randbytes(rng.randint(1, 16))
    return (template[:at] + run + template[at + len(run) :])[: len(template)]


def _length_field_wrong(rng: random.Random, template: bytes) -> bytes:
    """A two-byte field overwritten with what lengths go wrong at."""
    value = rng.choice((0, 1, 3, 0x7FFF, 0x8000, 0xFFFC, 0xFFFF))
    at = rng.randrange(max(1, len(template) - 1))
    return (template[:at] + value.to_bytes(2, "big") + template[at + 2 :])[: len(template)]


def _spliced(rng: random.Random, template: bytes) -> bytes:
    """The head of a template before random bytes."""
    return template[: rng.randrange(len(template))] + rng.randbytes(rng.randint(1, 200))


def _length(rng: random.Random) -> int:
    """Mostly short, sometimes none, sometimes more than the edge reads."""
    if rng.random() < 0.02:
        return rng.choice((0, 1, 2047, 2048, 2049, LONGEST_BYTES))
    return int(min(1500, rng.expovariate(1 / 120)))
