"""One timer for all calls of a worker: a heap of deadlines, one asyncio handle."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Something with a next deadline. scheduled_ns belongs to Timers: 0 = not in the heap."""

    scheduled_ns: int

    def next_timeout(self) -> int | None: ...


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """Calls fire(item, now_ns) when an item's deadline has come.

    An item that moves its deadline later stays where it is in the heap and is
    looked at again when its old place comes up: most deadlines move with every
    packet, and moving them costs nothing this way.
    """

    def __init__(self, fire: Callable[[T, int], None]) -> None:
        self._fire = fire
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[int, int, T]] = []
        self._tie = count()
        self._handle: asyncio.TimerHandle | None = None
        self._handle_ns = 0

    def schedule(self, item: T) -> None:
        """Take note of the item's next deadline."""
        due_ns = item.next_timeout()
        if due_ns is None or 0 < item.scheduled_ns <= due_ns:
            return
        item.scheduled_ns = due_ns
        heapq.heappush(self._heap, (due_ns, next(self._tie), item))
        self._arm()

    def forget(self, item: T) -> None:
        """Let go of an item that is over; its places may be half a minute ahead."""
        self._heap = [place for place in self._heap if place[2] is not item]
        heapq.heapify(self._heap)
        item.scheduled_ns = 0

    def _arm(self) -> None:
        if not self._heap:
            return
        due_ns = self._heap[0][0]
        if self._handle is not None:
            if self._handle_ns <= due_ns:
                return
            self._handle.cancel()
        self._handle_ns = due_ns
        self._handle = self._loop.call_at(due_ns / 1e9, self._run)

    def _run(self) -> None:
        self._handle = None
        now_ns = time.monotonic_ns()
        # Bounded: an item that is due again at once waits for the next turn.
        for _ in range(len(self._heap)):
            if not self._heap or self._heap[0][0] > now_ns:
                break
            due_ns, _, item = heapq.heappop(self._heap)
            if item.scheduled_ns != due_ns:
                continue  # an older place of an item that moved earlier since
            item.scheduled_ns = 0
            real_ns = item.next_timeout()
            if real_ns is None:
                continue
            if real_ns <= now_ns:
                self._fire(item, now_ns)
            if not item.scheduled_ns:
                self.schedule(item)
        self._arm()
