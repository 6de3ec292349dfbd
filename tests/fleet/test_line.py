"""The line's claims: who goes first, who is shed, and that nobody waits for nothing."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from jupyter_dsserve.fleet.line import AGE_S, Line, Place, Queue
from jupyter_dsserve.protocol.errors import DeadlineExceeded, TooManyRequests, Unavailable
from tests.support import until


def served(queue: Queue, names: dict[int, str], version: str = "v1") -> list[str]:
    """Everyone in line, in the order in which they go."""
    order = []
    while place := queue.first(version):
        order.append(names[id(place)])
        queue.leave(version, place)
    return order


class TestOrder:
    def test_a_lower_number_goes_first_and_equals_go_by_arrival(self) -> None:
        queue, names = Queue(), {}
        for name, priority, at in (("a", 0, 0.0), ("low", 5, 1.0), ("b", 0, 2.0), ("high", -5, 3.0)):
            names[id(queue.enter("v1", priority, at, 10))] = name
        assert served(queue, names) == ["high", "a", "b", "low"]
        assert queue.num_waiting == 0

    def test_who_has_waited_long_enough_goes_before_a_higher_priority(self) -> None:
        queue, names = Queue(), {}
        names[id(queue.enter("v1", 1, 0.0, 10))] = "old and low"
        names[id(queue.enter("v1", 0, AGE_S + 1, 10))] = "new and high"
        assert served(queue, names) == ["old and low", "new and high"]

    def test_when_it_is_full_the_last_in_line_is_shed(self) -> None:
        queue = Queue()
        low: list[Place] = [queue.enter("v1", 5, float(i), 3) for i in range(3)]
        queue.enter("v2", 0, 5.0, 3)
        assert [place.is_shed for place in low] == [False, False, True]
        assert (queue.num_waiting, queue.num_waiting_for("v1"), queue.num_waiting_for("v2")) == (3, 2, 1)

    def test_one_that_would_be_the_last_of_a_full_line_is_refused_with_the_limit(self) -> None:
        queue = Queue()
        for i in range(3):
            queue.enter("v1", 0, float(i), 3)
        with pytest.raises(TooManyRequests, match="3 requests wait in line already, which is max_queue") as full:
            queue.enter("v1", 0, 9.0, 3)
        assert full.value.retry_after_s > 0
        with pytest.raises(TooManyRequests):
            Queue().enter("v1", 0, 0.0, 0)


class Pool:
    """So many permits; ``look`` takes one."""

    def __init__(self, num_free: int) -> None:
        self.num_free = num_free
        self.line = Line()

    def look(self) -> str | None:
        if self.num_free == 0:
            return None
        self.num_free -= 1
        return "a permit"

    def give_back(self) -> None:
        self.num_free += 1
        self.line.wake("v1")

    async def wait(self, priority: int = 0, timeout_s: float = math.inf) -> str:
        now = time.monotonic()
        late = DeadlineExceeded("too late")
        return await self.line.wait("v1", priority, now, 100, self.look, now + timeout_s, lambda: late)


class TestWaiting:
    async def test_permits_go_to_the_first_in_line_and_one_news_serves_all_there_are(self) -> None:
        pool, order = Pool(0), []

        async def ask(name: int) -> None:
            await pool.wait(priority=-name)
            order.append(name)

        asking = [asyncio.create_task(ask(name)) for name in range(5)]
        await asyncio.sleep(0)
        pool.num_free = 3
        pool.line.wake("v1")
        await until(lambda: len(order) == 3)
        await asyncio.sleep(0.1)
        assert order == [4, 3, 2]
        pool.give_back()
        pool.give_back()
        await asyncio.wait_for(asyncio.gather(*asking), 30)
        assert (order, pool.num_free, pool.line.num_waiting) == ([4, 3, 2, 1, 0], 0, 0)

    async def test_nobody_overtakes_the_first_in_line(self) -> None:
        pool = Pool(0)
        first = asyncio.create_task(pool.wait(-1))
        await asyncio.sleep(0)
        pool.num_free = 1  # and the first has not looked yet
        late = asyncio.create_task(pool.wait())
        await asyncio.sleep(0)
        assert pool.num_free == 1
        pool.line.wake("v1")
        assert await asyncio.wait_for(first, 30) == "a permit"
        assert not late.done()
        late.cancel()

    async def test_who_leaves_passes_the_news_on(self) -> None:
        pool = Pool(0)
        first, second = asyncio.create_task(pool.wait(-1)), asyncio.create_task(pool.wait())
        await asyncio.sleep(0)
        pool.give_back()  # the first is woken, and leaves before it looks
        first.cancel()
        assert await asyncio.wait_for(second, 30) == "a permit"
        assert (pool.num_free, pool.line.num_waiting) == (0, 0)

    async def test_a_deadline_ends_the_wait_and_nothing_is_taken(self) -> None:
        pool = Pool(0)
        with pytest.raises(DeadlineExceeded):
            await pool.wait(timeout_s=0.02)
        pool.give_back()
        assert (pool.num_free, pool.line.num_waiting) == (1, 0)

    async def test_when_there_is_nothing_to_wait_for_any_more_everybody_hears_it(self) -> None:
        pool, is_gone = Pool(0), False

        def look() -> str | None:
            if is_gone:
                raise Unavailable("gone")
            return None

        pool.look = look  # type: ignore[method-assign]
        asking = asyncio.gather(*(pool.wait() for _ in range(20)), return_exceptions=True)
        await asyncio.sleep(0)
        is_gone = True
        pool.line.wake("v1")
        assert {type(end) for end in await asyncio.wait_for(asking, 30)} == {Unavailable}

    async def test_one_that_is_shed_while_it_waits_is_told_so(self) -> None:
        pool = Pool(0)
        low = asyncio.create_task(pool.wait(priority=9))
        await asyncio.sleep(0)
        pool.line.enter("v1", 0, 0.0, max_waiting=1)
        with pytest.raises(TooManyRequests):
            await asyncio.wait_for(low, 30)
