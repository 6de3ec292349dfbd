"""One subscription for all who listen: it outlives their faults, and ends with the last of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook.client import Record
from jupyter_dsserve.notebook.feed import Feed
from jupyter_dsserve.protocol.records import Event
from tests.support import until


def threads() -> int:
    return sum(t.name == "dsserve-feed" for t in threading.enumerate())


@pytest.fixture
async def feed(gateway: Gateway) -> AsyncIterator[Feed]:
    yield Feed(lambda: AsyncClient(gateway.url, gateway.admin_key))
    await until(lambda: threads() == 0)


class Listener:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.troubles: list[str] = []

    def __call__(self, records: list[Record], trouble: str) -> None:
        self.records += records
        self.troubles.append(trouble)

    def has(self, reason: str) -> bool:
        return any(isinstance(r, Event) and r.reason == reason for r in self.records)


async def test_all_listeners_hear_of_it_by_one_thread(feed: Feed, gateway: Gateway) -> None:
    one, other = Listener(), Listener()
    feed.listen(one)
    feed.listen(other)
    await until(lambda: one.troubles == [""])
    gateway.fleet.events.record(0.0, "tried", reason="first")
    await until(lambda: one.has("first") and other.has("first"))
    assert threads() == 1
    feed.forget(one)
    gateway.fleet.events.record(0.0, "tried", reason="second")
    await until(lambda: other.has("second"))
    assert not one.has("second")
    feed.forget(other)


async def test_a_listener_that_raises_does_not_silence_the_others(feed: Feed, gateway: Gateway) -> None:
    def broken(records: list[Record], trouble: str) -> None:
        raise ValueError("a panel's fault")

    good = Listener()
    feed.listen(broken)
    feed.listen(good)
    await until(lambda: good.troubles == [""])
    for reason in ("first", "second"):
        gateway.fleet.events.record(0.0, "tried", reason=reason)
        await until(lambda reason=reason: good.has(reason))
    feed.forget(broken)
    feed.forget(good)


async def test_no_thread_is_left_however_often_and_early_it_is_stopped(feed: Feed, gateway: Gateway) -> None:
    busy = asyncio.create_task(_many_events(gateway))
    for wait_s in [0, 0.001, 0.01, 0.02, 0.03, 0.05] * 8:
        listener = Listener()
        feed.listen(listener)
        await asyncio.sleep(wait_s)
        feed.forget(listener)
    busy.cancel()
    await until(lambda: threads() == 0)


async def _many_events(gateway: Gateway) -> None:
    while True:
        for _ in range(5):
            gateway.fleet.events.record(0.0, "tried")
        await asyncio.sleep(0.002)


async def test_it_says_why_nothing_comes_and_goes_on_when_it_can(gateway: Gateway, feed: Feed) -> None:
    listener = Listener()
    feed.listen(listener)
    await until(lambda: listener.troubles == [""])
    gateway.fleet.events.close()
    await until(lambda: len(listener.troubles) == 3)
    assert "the gateway ended" in listener.troubles[1]
    assert listener.troubles[2] == ""
    feed.forget(listener)
    nobody = Feed(lambda: AsyncClient("http://127.0.0.1:1", "key"))
    nobody.listen(listener)
    await until(lambda: "nothing answers" in listener.troubles[-1])
    nobody.forget(listener)
