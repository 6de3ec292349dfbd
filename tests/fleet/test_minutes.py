"""Minutes: what is counted, how they add up, and that they outlive the gateway."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import pytest

from jupyter_dsserve.fleet.database import database_url
from jupyter_dsserve.fleet.minutes import (
    MAX_POINTS,
    Gauges,
    Minute,
    Recorder,
    Sums,
    not_read,
    percentile_of,
    step_of,
)
from jupyter_dsserve.fleet.registry import Registry, Retention
from jupyter_dsserve.fleet.stats import Served, Window, percentile
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import StatsHistory
from tests.postgres import Postgres


def served(latency_s: float, *, is_error: bool = False) -> Served:
    return Served(0.0, latency_s, latency_s / 2, 10, is_error, prompt_tokens=3)


def minute_of(latencies: list[float], at: int = 60, version: str = "v1") -> Minute:
    recorder, window = Recorder(), Window()
    recorder.tick(at, [("demo", version, Gauges(replicas=1), window)])
    for latency_s in latencies:
        window.add(served(latency_s))
    (row,) = recorder.close()
    return row


def test_a_minute_has_what_came_within_it_and_the_most_that_was_seen() -> None:
    recorder, window = Recorder(), Window()
    window.add(served(0.1))
    assert recorder.tick(60.5, [("demo", "v1", Gauges(2, 5, 0.1, 100, 1), window)]) == []
    window.add(served(0.2, is_error=True))
    assert recorder.tick(119.9, [("demo", "v1", Gauges(4, 1, 0.5, 90, 1), window)]) == []
    (row,) = recorder.tick(120.1, [("demo", "v1", Gauges(1, 0, 0.2, 80, 1), window)])
    assert (row.at, row.requests, row.errors, row.tokens, row.prompt_tokens) == (60, 2, 1, 20, 6)
    assert row.most == Gauges(4, 5, 0.5, 100, 1)
    assert sum(count for _, count in row.latency_s) == 1  # of good answers
    (empty,) = recorder.tick(180.0, [])
    assert (empty.at, empty.requests, empty.latency_s, empty.most.replicas) == (120, 0, (), 1)
    assert recorder.tick(240.0, []) == []  # it is gone


def history_of(minutes: list[Minute], since: float, until: float, step_s: int, now: float = math.inf) -> StatsHistory:
    sums = Sums(since, until, step_s)
    for each in minutes:
        sums.add([each])
    return sums.history(now)


def test_a_version_that_is_not_loaded_has_no_minutes() -> None:
    recorder = Recorder()
    recorder.tick(60, [("demo", "v1", Gauges(), Window())])
    assert recorder.close() == []


def test_percentiles_of_several_minutes_are_those_of_all_their_requests() -> None:
    drawn = random.Random(7)
    quick, slow = (
        [drawn.lognormvariate(-3, 0.5) for _ in range(900)],
        [drawn.lognormvariate(0, 0.5) for _ in range(100)],
    )
    (series,) = history_of([minute_of(quick, 60), minute_of(slow, 120)], 0, 600, 600).series
    (point,) = series.points
    for found, share in ((point.p50_s, 0.5), (point.p95_s, 0.95), (point.p99_s, 0.99)):
        exact = percentile(quick + slow, share)
        assert found is not None
        assert exact is not None
        assert exact / 1.2 <= found <= exact * 1.2
    assert (point.requests, point.requests_per_s) == (1000, 1000 / 600)


def test_rates_are_of_the_minutes_of_a_step_that_are_asked_for_and_have_passed() -> None:
    minutes = [Minute("demo", "v1", at, requests=60, tokens=120) for at in range(0, 960, 60)]
    (series,) = history_of(minutes, 150, 930, 300, now=930).series  # the first of them is cut, the last runs
    assert [(p.at, p.requests, p.requests_per_s) for p in series.points] == [
        (0, 180, 1.0),
        (300, 300, 1.0),
        (600, 300, 1.0),
        (900, 60, 2.0),
    ]
    assert [p.tokens_per_s for p in series.points] == [2.0, 2.0, 2.0, 4.0]
    (series,) = history_of(minutes, 0, 930, 300, now=5000).series  # it is over, and told as a whole
    assert series.points[-1].requests_per_s == 1.0


def test_a_minute_that_ends_while_others_are_read_is_not_lost_and_one_that_runs_on_counts_once() -> None:
    recorder, window = Recorder(), Window()
    recorder.tick(60, [("demo", "v1", Gauges(replicas=1), window)])
    window.add(served(0.1))
    before = recorder.current()
    window.add(served(0.1))
    assert [(m.at, m.requests) for m in not_read(before, recorder.current())] == [(60, 2)]
    recorder.tick(120, [("demo", "v1", Gauges(replicas=1), window)])
    assert [(m.at, m.requests) for m in not_read(before, recorder.current())] == [(60, 1), (120, 0)]


def test_points_are_limited_and_minutes_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jupyter_dsserve.fleet.minutes._MAX_SUMS", 2)
    minutes = [Minute("demo", "v1", at, requests=1) for at in range(0, 600, 60)]
    (series,) = history_of(minutes, 0, 600, 300).series
    assert [point.requests for point in series.points] == [5, 5]
    with pytest.raises(InvalidRequest, match="over 2 points"):
        history_of(minutes, 0, 600, 240)


def test_percentiles_at_the_edges() -> None:
    assert percentile_of((), 0.5) is None
    assert percentile_of(((math.inf, 3),), 0.5) == pytest.approx(1000, rel=0.1)
    assert minute_of([5000.0]).latency_s == ((math.inf, 1),)


def test_a_minute_is_read_as_it_was_written_down() -> None:
    row = minute_of([0.1, 0.3, 5000.0])
    assert Minute.read("demo", "v1", 60, row.row()) == row
    before = [[None if math.isinf(bound) else bound, count] for bound, count in row.latency_s]
    assert Minute.read("demo", "v1", 60, row.row() | {"latency_s": before}) == row


def test_steps() -> None:
    assert step_of(0, 3600, None) == 60
    assert step_of(0, 14 * 86_400, None) % 60 == 0
    assert step_of(0, 3600, 300) == 300
    for since, until, step_s, named in (
        (0, 60, 90, "step is 90"),
        (0, 60, 0, "step is 0"),
        (60, 60, None, "give a to that is later"),
        (0, 60 * (MAX_POINTS + 1), 60, "over the limit"),
    ):
        with pytest.raises(InvalidRequest, match=named):
            step_of(since, until, step_s)


async def minutes_in(registry: Registry, deployment: str, version: str, since: float, until: float) -> list[Minute]:
    """The oldest first."""
    found = [each async for piece in registry.minutes(deployment, version, since, until) for each in piece]
    return found[::-1]


async def check_registry(url: str, data_dir: Path) -> None:
    place = database_url(url, data_dir)
    registry = Registry(place, Retention(max_stats_days=0))
    registry.open(10)
    await registry.add_minutes([minute_of([0.1], 60), minute_of([0.1], 60, "v2")])
    await registry.add_minutes([minute_of([0.2], 120)])
    registry.close()
    registry = Registry(place, Retention(max_stats_days=0))
    registry.open(10)
    await registry.add_minutes([minute_of([0.3], 60)])  # of the next gateway, in the same minute
    found = await minutes_in(registry, "demo", "v1", 0, 1000)
    assert [(m.at, m.requests) for m in found] == [(60, 2), (120, 1)]
    assert [(m.version, m.at) for m in await minutes_in(registry, "", "", 120, 1000)] == [("v1", 120)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jupyter_dsserve.fleet.registry._MINUTES_AT_ONCE", 2)
        pieces = [[(m.at, m.version) for m in piece] async for piece in registry.minutes("", "", 0, 1000)]
    assert pieces == [[(120, "v1"), (60, "v2")], [(60, "v1")]]
    registry.close()
    registry = Registry(place, Retention(max_stats_days=14))  # all of it is older than that
    registry.open(10)
    assert await minutes_in(registry, "", "", 0, 1000) == []
    registry.close()


async def test_minutes_outlive_a_gateway_add_up_and_are_forgotten_in_time(tmp_path: Path) -> None:
    await check_registry("", tmp_path)


async def test_so_they_do_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    await check_registry(postgres.database(), tmp_path)


async def test_what_is_too_old_is_forgotten_each_hour_whenever_a_version_is_loaded(tmp_path: Path) -> None:
    registry = Registry(database_url("", tmp_path), Retention(max_stats_days=1))
    registry.open(10)
    now = int(time.time()) // 3600 * 3600 + 60  # nothing was there in the hour's first minute
    await registry.add_minutes([minute_of([0.1], now - 2 * 86_400)])
    assert len(await minutes_in(registry, "", "", 0, now + 60)) == 1
    await registry.add_minutes([minute_of([0.1], now)])
    assert [m.at for m in await minutes_in(registry, "", "", 0, now + 60)] == [now]
    registry.close()
