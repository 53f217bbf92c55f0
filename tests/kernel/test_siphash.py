"""siphash.c: the authors' vectors, and the oracle on anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.kernel import binding
from dataplane.proto.siphash import siphash24

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "siphash24.json").read_text())


@pytest.mark.parametrize(("length", "expected"), list(enumerate(VECTORS)))
def test_reference_vectors(length: int, expected: str) -> None:
    """vectors.h of the reference implementation: key 0..15, data 0..length-1."""
    result = binding.siphash24(bytes(range(16)), bytes(range(length)))
    assert result.to_bytes(8, "little").hex() == expected


def test_the_papers_example() -> None:
    """Appendix A of the paper."""
    assert binding.siphash24(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=300))
def test_as_the_oracle(key: bytes, data: bytes) -> None:
    assert binding.siphash24(key, data) == siphash24(key, data)
