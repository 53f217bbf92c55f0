"""Shared-memory tables of a test's own, gone when the test ends."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from dataplane.kernel import binding
from dataplane.shm.enums import RegionKind
from dataplane.shm.names import SegmentNames
from dataplane.shm.segment import Segment, create_segment, unlink
from tests.kernel.rig import RelayRig
from tests.kernel.tables import TestTables


@pytest.fixture
def tables() -> Iterator[TestTables]:
    names = SegmentNames(f"test.{os.getpid()}.{secrets.token_hex(4)}")
    boot_id = secrets.token_bytes(16)
    made: list[Segment] = []

    def make(name: str, kind: RegionKind, rows: int, owner: int = 0) -> Segment:
        segment = create_segment(name, kind, rows, binding.row_bytes(kind), boot_id, owner)
        made.append(segment)
        return segment

    yield TestTables(names, boot_id, make)
    for segment in made:
        unlink(segment.name)


@pytest.fixture
def rig(tables: TestTables) -> Iterator[RelayRig]:
    made = RelayRig(tables)
    yield made
    made.close()
    made.assert_balanced()
