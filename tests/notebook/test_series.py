"""What the plot is drawn from."""

from __future__ import annotations

import numpy as np

from jupyter_dsserve.notebook.figures import latency_traces
from jupyter_dsserve.notebook.series import WINDOW_S, Series
from jupyter_dsserve.protocol.records import VersionState, VersionStats


def stats(at: float, version: str = "v1", p50_s: float | None = 0.010) -> VersionStats:
    p95_s = None if p50_s is None else 2 * p50_s
    return VersionStats(
        "demo", version, at, VersionState.READY, 100, 1, 5, 0, 0, 0, p50_s, p95_s, p95_s, p50_s, 1.0, 0, 0
    )


def test_latencies_are_milliseconds_by_seconds_ago() -> None:
    series = Series()
    for at, p50_s in ((1e9, 0.010), (1e9 + 1, 0.020)):
        series.add(stats(at, p50_s=p50_s))
    found = series.latencies("v1", now=1e9 + 3)
    assert found.ago_s.tolist() == [-3, -2]
    assert found.p50_ms.tolist() == [10, 20]
    assert found.p95_ms.tolist() == [20, 40]
    assert found.p50_ms.dtype == np.float32


def test_nothing_is_older_than_the_window_and_memory_does_not_grow() -> None:
    series = Series()
    for second in range(3600):
        series.add(stats(1e9 + second))
    assert len(series.latencies("v1", now=1e9 + 3599).ago_s) == WINDOW_S
    assert len(series._stats["v1"]) == WINDOW_S + 1
    assert series.latencies("v1", now=1e9 + 9999).ago_s.size == 0


def test_seconds_without_an_answer_are_gaps() -> None:
    series = Series()
    series.add(stats(1e9, p50_s=None))
    found = series.latencies("v1", now=1e9)
    assert np.isnan(found.p50_ms).all()
    assert np.isnan(found.p95_ms).all()


def test_versions_are_kept_apart_and_can_be_forgotten() -> None:
    series = Series()
    series.add(stats(1e9, "v1", 0.010))
    series.add(stats(1e9, "v2", 0.050))
    assert series.latencies("v2", 1e9).p50_ms.tolist() == [50]
    latest = series.latest("v1")
    assert latest is not None
    assert latest.p50_s == 0.010
    series.forget("v1")
    assert series.latest("v1") is None
    assert series.latencies("v1", 1e9).ago_s.size == 0


def test_a_version_is_drawn_as_two_lines_of_its_colour() -> None:
    series = Series()
    series.add(stats(1e9))
    p50, p95 = latency_traces("v1", series.latencies("v1", 1e9))
    assert (p50.name, p95.name) == ("v1 p50", "v1 p95")
    assert p50.line.color == p95.line.color
    assert (p50.line.dash, p95.line.dash) == ("dot", None)
