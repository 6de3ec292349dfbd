"""What is written is there after a restart."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from jupyter_dsserve.fleet.database import database_url
from jupyter_dsserve.fleet.events import Asked, Events
from jupyter_dsserve.fleet.minutes import Minute
from jupyter_dsserve.fleet.registry import TABLES, Registry, Retention, Stored, VersionRow
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.protocol.errors import Unavailable
from jupyter_dsserve.protocol.records import Event
from jupyter_dsserve.protocol.spec import WorkerSpec

ROW = VersionRow(
    "demo",
    "v1",
    WorkerSpec("builtin:demo-v1", dtype="bf16"),
    2,
    "first",
    12.5,
    True,
    {"priority": "low"},
    "ann",
    {"run": "r7", "loss": 2.5},
    "abc",
)


def opened(url: sa.URL) -> Stored:
    """What the next gateway finds."""
    registry = Registry(url)
    try:
        return registry.open(10)
    finally:
        registry.close()


async def test_versions_routes_and_events_are_there_again(url: sa.URL) -> None:
    registry = Registry(url)
    assert registry.open(10).versions == []
    events = [Event(i, float(i), "loading", "demo", "v1", "demo@v1#0", "") for i in range(1, 16)]
    for event in events:
        registry.add_event(event)
    registry.save_route("demo", Route({"v1": 100}, 1))
    registry.save_route("demo", Route({"v1": 90, "v2": 10}, 2))
    registry.save_policy("demo", {"max_queue": 5}, Route({"v1": 90, "v2": 10}, 2))
    registry.save_rollout("demo", {"step": 1})
    registry.save_rollout("demo", {"step": 2})
    await registry.save_version(ROW)
    registry.close()
    stored = opened(url)
    assert stored.versions == [ROW]
    assert stored.policies == {"demo": {"max_queue": 5}}
    assert stored.rollouts == {"demo": {"step": 2}}
    assert stored.routes == {"demo": Route({"v1": 90, "v2": 10}, 2)}
    assert stored.events == events[-10:]


async def test_a_policy_that_is_written_before_its_route_is_kept(url: sa.URL) -> None:
    """As it happens when the disk was full for the first of two routes."""
    registry = Registry(url)
    registry.open(10)
    registry.save_version(ROW)
    registry.save_policy("demo", {"max_queue": 5}, Route({"v1": 100}, 1))
    await registry.save_route("demo", Route({"v1": 90, "v2": 10}, 2))
    registry.close()
    stored = opened(url)
    assert stored.policies == {"demo": {"max_queue": 5}}
    assert stored.routes == {"demo": Route({"v1": 90, "v2": 10}, 2)}


async def test_what_is_forgotten_is_gone(url: sa.URL) -> None:
    registry = Registry(url)
    registry.open(10)
    registry.save_version(ROW)
    registry.save_route("demo", Route({"v1": 100}, 1))
    registry.save_rollout("demo", {"step": 1})
    registry.forget_version("demo", "v1")
    await registry.forget_deployment("demo")
    registry.close()
    stored = opened(url)
    assert (stored.versions, stored.routes, stored.rollouts) == ([], {}, {})


async def test_writes_nobody_waits_for_are_done_before_close_returns(url: sa.URL) -> None:
    registry = Registry(url)
    registry.open(10)
    registry.save_version(ROW)
    for revision in range(50):
        registry.save_route("demo", Route({"v1": 100}, revision))
    registry.close()
    assert opened(url).routes["demo"].revision == 49


def limit_size(registry: Registry, max_pages: int) -> None:
    """Let the file grow no further than that: SQLite then says what it says on a full disk."""
    sa.event.listen(registry._engine, "begin", lambda db: db.exec_driver_sql(f"PRAGMA max_page_count = {max_pages}"))


async def test_what_a_full_disk_refuses_is_told_kept_in_order_and_written_once_there_is_room(tmp_path: Path) -> None:
    url = database_url("", tmp_path)
    registry = Registry(url)
    registry.open(10)
    told: list[tuple[str, str]] = []
    registry.on_failure = lambda what, why: told.append((what, why))
    limit_size(registry, 1)
    long = "x" * 100_000
    with pytest.raises(Unavailable, match=r"demo@v1 was not written.*full"):
        await registry.save_version(replace(ROW, note=long), is_new=True)  # too long for what is left
    with pytest.raises(Unavailable, match="full"):
        await registry.save_version(replace(ROW, note=long))
    registry.add_event(Event(1, 1.0, "loading", reason=long))
    with pytest.raises(Unavailable, match="full"):
        await registry.save_version(replace(ROW, note="short"))  # of one thing only the last counts
    assert await registry.retry(0.0) == 0
    assert [what for what, _ in told] == ["version demo@v1", "version demo@v1", "event 1", "version demo@v1"]
    limit_size(registry, 1_000_000)
    assert await registry.retry(0.0) == 2
    assert await registry.retry(0.0) == 0
    registry.close()
    stored = opened(url)
    assert [v.note for v in stored.versions] == ["short"]
    assert [e.id for e in stored.events] == [1]


async def test_what_can_never_be_written_holds_nothing_up(url: sa.URL) -> None:
    registry = Registry(url)
    registry.open(10)
    await registry.add_event(Event(1, 1.0, "loading"))
    with pytest.raises(Unavailable, match="cannot be written"):
        await registry.add_event(Event(1, 1.0, "ready"))  # the id is taken
    await registry.add_event(Event(2, 2.0, "ready"))


async def test_a_writing_is_done_although_nobody_waits_for_it_any_more(url: sa.URL) -> None:
    registry = Registry(url)
    registry.open(10)
    registry.save_version(ROW)
    for id in range(1, 20):
        registry.add_event(Event(id, 0.0, "loading"))
    waiting = asyncio.ensure_future(registry.save_route("demo", Route({"v1": 100}, 1)))
    waiting.cancel()
    await asyncio.sleep(0)
    registry.close()
    assert opened(url).routes == {"demo": Route({"v1": 100}, 1)}


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        (Asked(limit=4), [27, 28, 29, 30]),
        (Asked(before=27, limit=4), [23, 24, 25, 26]),
        (Asked(since=4, limit=3), [5, 6, 7]),
        (Asked(since=4, before=7, limit=3), [5, 6]),
        (Asked("other", since=0), list(range(3, 31, 3))),
        (Asked(since=30), []),
        (Asked(first=5, last=8), [5, 6, 7, 8]),  # however much came after
        (Asked("demo", first=5, last=8, limit=2), [7, 8]),
        (Asked("demo", before=7, first=5, last=8, limit=2), [5]),
        (Asked(since=5, first=7.5, limit=2), [8, 9]),
        (Asked(first=30.5), []),
    ],
)
async def test_history_is_read_in_pieces_and_by_time(url: sa.URL, asked: Asked, ids: list[int]) -> None:
    registry = Registry(url)
    registry.open(10)
    events = [Event(id, float(id), "ready", "demo" if id % 3 else "other") for id in range(1, 31)]
    for event in events:
        registry.add_event(event)
    assert [e.id for e in await registry.history(asked)] == ids
    assert [e.id for e in asked.of(reversed(events))] == ids  # the same of those that are remembered
    registry.close()


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(0, 0), 12_000),
        (Retention(500, 0), 500),
        (Retention(0, 1), 9000),
        (Retention(500, 1), 500),
        (Retention(0, 0.0001), 1),  # the last stays, whatever its age: ids are never given twice
    ],
)
async def test_history_is_kept_by_number_and_by_age(url: sa.URL, retention: Retention, left: int) -> None:
    registry = Registry(url)
    registry.open(10)
    now = time.time()
    with registry._engine.begin() as db:
        # 9,000 of an hour ago, after 3,000 of two days ago
        rows = [
            {"id": id, "at": now - (3600 if id > 3000 else 2 * 86_400), "kind": "ready"}
            | dict.fromkeys(("deployment", "version", "replica", "reason"), "")
            for id in range(1, 12_001)
        ]
        db.execute(TABLES.tables["history"].insert(), rows)
    registry.close()
    again = Registry(url, retention)
    again.open(10)
    for _ in range(4):  # as many pieces as it takes, each after what else is to be done
        await again.history(Asked())
    events = await again.history(Asked(since=0, limit=20_000))
    again.close()
    assert [e.id for e in events] == list(range(12_001 - left, 12_001))


async def test_what_a_kill_left_of_a_deleted_deployment_is_gone(url: sa.URL) -> None:
    registry = Registry(url)
    registry.open(10)
    for name in ("demo", "other"):
        registry.save_version(replace(ROW, deployment=name))
        registry.save_route(name, Route({"v1": 100}, 1))
        registry.save_policy(name, {"rate": 5}, Route())
        registry.save_rollout(name, {"step": 1})
    await registry.forget_version("demo", "v1")  # and then the gateway was killed
    registry.close()
    stored = opened(url)
    assert set(stored.routes) == set(stored.policies) == set(stored.rollouts) == {"other"}
    registry = Registry(url)
    registry.open(10)
    registry.save_version(ROW)
    await registry.save_route("demo", Route({}, 0))
    registry.close()
    assert opened(url).policies == {"demo": {}, "other": {"rate": 5}}


async def test_an_id_that_a_killed_gateway_had_told_is_not_given_again(url: sa.URL) -> None:
    told: list[int] = []
    for _ in range(3):
        registry = Registry(url)
        events = Events(lambda _event: None, registry.open(10, "a test").events)  # none is written: it is killed
        new = [events.record(0.0, "loading").id for _ in range(100)]
        assert min(new) > max(told, default=0)
        told += new
        registry.close()
    assert [e.kind for e in opened(url).events] == ["started"] * 3


async def test_pieces_of_a_minute_that_wait_for_the_database_are_all_counted(tmp_path: Path) -> None:
    url = database_url("", tmp_path)
    registry = Registry(url)
    registry.open(10)
    registry.on_failure = lambda _what, _why: None
    limit_size(registry, 1)
    name = "v" * 100_000  # too long for what is left
    for num in (2, 3):
        with pytest.raises(Unavailable, match="full"):
            await registry.add_minutes([Minute("demo", name, 60, requests=num)])
    limit_size(registry, 1_000_000)
    assert await registry.retry(0.0) == 2
    found = [minute async for piece in registry.minutes("demo", "", 0, 120) for minute in piece]
    assert [minute.requests for minute in found] == [5]
    registry.close()
