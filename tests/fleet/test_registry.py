"""What is written is there after a restart."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import sqlalchemy as sa

from jupyter_dsserve.fleet.registry import Registry, VersionRow
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.protocol.records import Event
from jupyter_dsserve.protocol.spec import WorkerSpec

ROW = VersionRow("demo", "v1", WorkerSpec("builtin:demo-v1", dtype="bf16"), 2, "first", 12.5, True, {"priority": "low"})


def opened(path: Path) -> Registry:
    return Registry(sa.URL.create("sqlite", database=str(path / "fleet.db")))


async def test_versions_routes_and_events_are_there_again(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    assert registry.open(10).versions == []
    events = [Event(i, float(i), "loading", "demo", "v1", "demo@v1#0", "") for i in range(1, 16)]
    for event in events:
        registry.add_event(event)
    registry.save_route("demo", Route({"v1": 100}, 1))
    registry.save_route("demo", Route({"v1": 90, "v2": 10}, 2))
    registry.save_policy("demo", {"max_queue": 5})
    registry.save_rollout("demo", {"step": 1})
    registry.save_rollout("demo", {"step": 2})
    await registry.save_version(ROW)
    registry.close()
    stored = opened(tmp_path).open(10)
    assert stored.versions == [ROW]
    assert stored.policies == {"demo": {"max_queue": 5}}
    assert stored.rollouts == {"demo": {"step": 2}}
    assert stored.routes == {"demo": Route({"v1": 90, "v2": 10}, 2)}
    assert stored.events == events[-10:]


async def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    registry.open(10)
    registry.save_version(ROW)
    registry.save_route("demo", Route({"v1": 100}, 1))
    registry.save_rollout("demo", {"step": 1})
    registry.forget_version("demo", "v1")
    await registry.forget_deployment("demo")
    registry.close()
    stored = opened(tmp_path).open(10)
    assert (stored.versions, stored.routes, stored.rollouts) == ([], {}, {})


async def test_writes_nobody_waits_for_are_done_before_close_returns(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    registry.open(10)
    for revision in range(50):
        registry.save_route("demo", Route({"v1": 100}, revision))
    registry.close()
    assert opened(tmp_path).open(10).routes["demo"].revision == 49


def test_no_write_ahead_log_is_left_beside_the_database(tmp_path: Path) -> None:
    opened(tmp_path).open(10)
    mode = sqlite3.connect(tmp_path / "fleet.db").execute("PRAGMA journal_mode").fetchone()
    assert mode == ("delete",)
