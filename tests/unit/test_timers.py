"""The worker's one timer: what it keeps, and what it must not."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

from dataplane.workers.timers import Timers

SECOND = 1_000_000_000


class Item:
    def __init__(self, due_ns: int | None) -> None:
        self.scheduled_ns = 0
        self.due_ns = due_ns

    def next_timeout(self) -> int | None:
        return self.due_ns


async def test_what_is_over_is_not_kept_until_its_time() -> None:
    """A call has a place half a minute ahead from its first check on."""
    timers: Timers[Item] = Timers(lambda item, now_ns: None)
    kept, over = Item(time.monotonic_ns() + 40 * SECOND), Item(time.monotonic_ns() + 30 * SECOND)
    timers.schedule(kept)
    timers.schedule(over)
    over.due_ns = time.monotonic_ns() + 20 * SECOND
    timers.schedule(over)
    timers.forget(over)
    gone = weakref.ref(over)
    del over
    gc.collect()
    assert gone() is None


async def test_forgetting_all_while_the_timer_runs() -> None:
    items = [Item(time.monotonic_ns() + 1) for _ in range(5)]
    fired: list[Item] = []

    def fire(item: Item, now_ns: int) -> None:
        fired.append(item)
        for one in items:
            one.due_ns = None
            timers.forget(one)

    timers: Timers[Item] = Timers(fire)
    for item in items:
        timers.schedule(item)
    async with asyncio.timeout(5):
        while not fired:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    assert len(fired) == 1
    later = Item(time.monotonic_ns() + 1)
    timers.schedule(later)
    async with asyncio.timeout(5):
        while len(fired) < 2:
            await asyncio.sleep(0.001)
