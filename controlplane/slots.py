"""Free slots of the session table and the generations that they go through. Pure."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable

GENERATION_MASK = 0xFFFFFF


class SlotPool:
    """Hands out the slot that has been free for the longest: a late packet of
    its last call is then as unlikely as can be, and generations advance evenly."""

    def __init__(self, slots: Iterable[int]) -> None:
        self._free = deque(slots)

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> int | None:
        return self._free.popleft() if self._free else None

    def give(self, slot: int) -> None:
        self._free.append(slot)


def next_generation(generation: int) -> int:
    """The one after, never 0.

    A slot that was never used (0) starts anywhere: a node that starts afresh
    under the same cluster key must not take up its old ufrags again.
    """
    if generation == 0:
        return secrets.randbelow(GENERATION_MASK) + 1
    return generation % GENERATION_MASK + 1
