"""What the plot is drawn from."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from jupyter_dsserve.notebook.figures import (
    COLUMNS,
    NARROW_COLUMNS,
    NUM_HEADS,
    height_px,
    live_traces,
    live_words,
    mark_data,
    mark_shapes,
)
from jupyter_dsserve.notebook.parts.plots import Plots
from jupyter_dsserve.notebook.past import Mark, Past
from jupyter_dsserve.notebook.series import WINDOW_S, Series
from jupyter_dsserve.protocol.records import Event, StatsHistory, StatsPoint, StatsSeries, VersionState, VersionStats


def stats(at: float, version: str = "v1", p50_s: float | None = 0.010) -> VersionStats:
    p95_s = None if p50_s is None else 2 * p50_s
    return VersionStats(
        "demo", version, at, VersionState.READY, 100, 1, 5, 0, 0, 0, p50_s, p95_s, p95_s, p50_s, 1.0, 0, 0
    )


def test_latencies_are_milliseconds_by_seconds_ago() -> None:
    series = Series()
    for at, p50_s in ((1e9, 0.010), (1e9 + 1, 0.020)):
        series.add(stats(at, p50_s=p50_s))
    found = series.curves("v1", now=1e9 + 3)
    assert found.ago_s.tolist() == [-3, -2]
    assert found.p50_ms.tolist() == [10, 20]
    assert found.p95_ms.tolist() == [20, 40]
    assert found.p50_ms.dtype == np.float32


def test_nothing_is_older_than_the_window_and_memory_does_not_grow() -> None:
    series = Series()
    for second in range(3600):
        series.add(stats(1e9 + second))
    assert len(series.curves("v1", now=1e9 + 3599).ago_s) == WINDOW_S
    assert len(series._stats["v1"]) == WINDOW_S + 1
    assert series.curves("v1", now=1e9 + 9999).ago_s.size == 0


def test_seconds_without_an_answer_are_gaps() -> None:
    series = Series()
    series.add(stats(1e9, p50_s=None))
    found = series.curves("v1", now=1e9)
    assert np.isnan(found.p50_ms).all()
    assert np.isnan(found.p95_ms).all()


def test_versions_are_kept_apart_and_can_be_forgotten() -> None:
    series = Series()
    series.add(stats(1e9, "v1", 0.010))
    series.add(stats(1e9, "v2", 0.050))
    assert series.curves("v2", 1e9).p50_ms.tolist() == [50]
    latest = series.latest("v1")
    assert latest is not None
    assert latest.p50_s == 0.010
    series.keep_only(["v2"])
    assert series.latest("v1") is None
    assert series.curves("v1", 1e9).ago_s.size == 0


def test_requests_per_second_are_counted_over_five_seconds_and_a_gateway_that_began_anew_is_no_burst() -> None:
    series = Series()
    for second, requests in enumerate([0, 0, 20, 40, 60, 80, 100, 3, 4]):
        series.add(replace(stats(1e9 + second), requests=requests))
    found = series.curves("v1", 1e9 + 8).requests_per_s
    assert found[:7].tolist() == [0, 0, 10, pytest.approx(13.33, abs=0.01), 15, 16, 20]
    assert found[7:].tolist() == [0, 0]
    assert series.requests_per_s("v1") == 0
    assert series.requests_per_s("v9") == 0


def past(*ago_s: float, until: float = 1e9, requests_per_s: float = 2.0) -> StatsHistory:
    points = [
        StatsPoint(1e9 - ago, 120, 0, requests_per_s, 0, 0, 9.0, 0.01, 0.02, 0.03, 0.01, 1, 0, 0.5, 2**20, 1)
        for ago in ago_s
    ]
    return StatsHistory(1e9 - 3600, until, 60, [StatsSeries("demo", "v1", points)])


def test_minutes_are_steps_that_go_on_as_live_seconds_and_no_moment_is_told_twice() -> None:
    series = Series()
    series.fill(past(200, 140, 80, 20, requests_per_s=4.0))
    for second in range(30):
        series.add(replace(stats(1e9 - 50 + second, p50_s=0.5), requests=2 * second))
    found = series.curves("v1", 1e9, 900)
    assert found.ago_s[:11].tolist() == [-200, -170, -140, -140, -110, -80, -80, -65, -50, -50, -49]
    assert (np.diff(found.ago_s) >= 0).all()
    assert len(found.ago_s) == 3 * 3 + 30, "the minute that is live already is not told again"
    assert found.p95_ms[:11].tolist() == [20] * 9 + [1000] * 2, "a minute's value lasts until the first live second"
    assert found.requests_per_s[:11].tolist() == [4] * 10 + [2], "no dip where they meet"
    assert found.kv[0] == 50
    assert found.memory[0] == 1
    narrow = series.curves("v1", 1e9)
    assert narrow.ago_s[:4].tolist() == [-120, -100, -80, -80], "of a narrow window, only what lies in it"
    series.fill(past(140, 80))
    assert series.curves("v1", 1e9, 900).ago_s[0] == -140, "told again, it takes the place of what was"


def test_where_all_of_the_window_is_live_no_minute_is_told() -> None:
    series = Series()
    series.fill(past(140, 80, 20))
    for second in range(120):
        series.add(stats(1e9 - 119 + second))
    assert series.curves("v1", 1e9).ago_s.tolist() == list(range(-119, 1))


def test_while_a_version_was_not_loaded_its_line_has_a_gap() -> None:
    series = Series()
    series.fill(past(1000, 940, 400))
    series.add(stats(1e9 - 5))
    found = series.curves("v1", 1e9, 3600)
    gaps = [-880, -340]
    assert found.ago_s.tolist() == [-1000, -970, -940, -940, -910, -880, gaps[0], -400, -370, -340, gaps[1], -5]
    assert np.flatnonzero(np.isnan(found.p95_ms)).tolist() == [6, 10]
    assert found.requests_per_s[-1] == 0
    series.keep_only(["v2"])
    assert series.curves("v1", 1e9, 3600).ago_s.size == 0


def test_of_the_minute_that_runs_only_what_has_passed_counts() -> None:
    series = Series()
    series.fill(past(20, until=1e9))
    assert series.curves("v1", 1e9).ago_s.tolist() == [-20, -10, 0]


def test_a_minutes_errors_are_one_point() -> None:
    series = Series()
    told = past(80, 20)
    told.series[0].points[0] = replace(told.series[0].points[0], errors=30)
    series.fill(told)
    found = series.curves("v1", 1e9)
    seen = np.isfinite(found.errors_per_s)
    assert found.ago_s[seen].tolist() == [-50]
    assert found.errors_per_s[seen].tolist() == [0.5]


def test_live_seconds_are_a_data_frame() -> None:
    series = Series()
    series.add(stats(1e9, "v1"))
    series.add(stats(1e9, "v2"))
    rows = series.to_frame()
    assert rows["version"].tolist() == ["v1", "v2"]
    assert rows["p95_s"].tolist() == [0.02, 0.02]


def test_seconds_without_an_error_are_no_points() -> None:
    series = Series()
    for second, errors in enumerate([0, 0, 10]):
        series.add(replace(stats(1e9 + second), errors=errors))
    found = series.curves("v1", 1e9 + 2).errors_per_s
    assert np.isnan(found[:2]).all()
    assert found[2] == 5


def test_a_page_that_is_loaded_again_is_told_what_is_drawn_now() -> None:
    series, plots = Series(), Plots("demo")
    for second in range(3):
        series.add(stats(1e9 + second))
    plots.draw(["v1"], series, [], 1e9 + 3)
    told = plots.figure.get_state()
    assert [line.get("name") for line in told["_widget_data"]] == [line.name for line in plots.figure.data]
    assert "v1" in [line.get("name") for line in told["_widget_data"]]
    assert told["_widget_data"][NUM_HEADS]["x"], "without its numbers"
    assert told["_widget_layout"]["autosize"] is True, "it was not at first"
    assert plots.figure.get_state("_config").keys() == {"_config"}
    plots.figure.set_state({"_widget_data": [], "_view_count": 2})  # a second page, of what it was told at first
    assert (len(plots.figure._widget_data), plots.figure._view_count) == (NUM_HEADS, 2)


def test_on_a_narrow_page_panes_stand_two_in_a_row_with_titles_in_two_lines_and_a_zoom_stays() -> None:
    series, plots = Series(), Plots("demo")
    series.add(stats(1e9))
    plots.draw(["v1"], series, [Mark(1e9 - 30, "route", "", "#888")], 1e9)
    plots.figure.plotly_relayout({"xaxis4.range[0]": -60, "xaxis4.range[1]": -30})  # as a page does
    panes = [f"{kind}axis{number}" for number in ("", *"23456") for kind in "xy"]

    def looks() -> tuple[list[object], ...]:
        layout = plots.figure.layout
        left = [layout[axis].domain[0] for axis in panes[::2]]
        bottom = [layout[axis].domain[0] for axis in panes[1::2]]
        words = [bool(layout[axis].title.text) for axis in panes[::2]]
        return left, bottom, words, [head.visible for head in plots.figure.data[:NUM_HEADS]]

    wide = looks()
    plots.fit(is_narrow=True)
    left, bottom, words, heads = looks()
    assert (len(set(left)), len(set(bottom))) == (2, 3)
    assert words == [False] * 4 + [True] * 2, "time is named below the last row only"
    assert heads == [True, True, False], "heads of marks stand above the first row only"
    titles = [each.text for each in plots.figure.layout.annotations[:6]]
    assert max(len(line) for title in titles for line in title.split("<br>")) <= 20
    assert height_px(NARROW_COLUMNS) > height_px(COLUMNS)
    plots.draw(["v1"], series, [Mark(1e9 - 30, "route", "", "#888")], 1e9 + 1)
    assert plots.figure.layout.annotations[0].text == titles[0]
    assert plots.figure.layout.xaxis.range == (-61, -31)
    plots.fit(is_narrow=False)
    assert looks() == wide


def test_an_hour_of_two_versions_takes_no_more_memory_than_its_first_half() -> None:
    series, past, plots = Series(), Past("demo"), Plots("demo")

    def pass_time(seconds: range) -> int:
        for second in seconds:
            now = 1e9 + second
            for version in ("v1", "v2"):
                series.add(replace(stats(now, version), requests=7 * second))
            if second % 5 == 0:
                past.add([Event(second, now, "route", "demo", reason="v1=90 v2=10")])
            if second % 100 == 0:  # an hour's drawings take a minute
                plots.draw(["v1", "v2"], series, past.marks(now - WINDOW_S), now)
        gc.collect()
        # There plotly makes a class for each name that it reads; Python's table of all classes grows in leaps.
        held = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, "*/_plotly_utils/utils.py")])
        return sum(trace.size for trace in held.traces)

    tracemalloc.start()
    try:
        before = pass_time(range(1800))
        after = pass_time(range(1800, 3600))
    finally:
        tracemalloc.stop()
    assert after < 1.1 * before
    assert max(len(trace.x) for trace in plots.figure.data) <= WINDOW_S
    assert len(past._events) == 200
    plots.figure.close()


def test_a_version_has_its_colour_and_its_dash_in_every_pane() -> None:
    v1, v2 = live_traces("v1"), live_traces("v2")
    drawn = [t for t in v1 if t.mode == "lines"]
    assert {t.line.color for t in drawn} == {"#0072B2"}
    assert {t.line.dash for t in drawn} == {"solid"}
    assert {t.line.dash for t in v2 if t.mode == "lines"} == {"dash"}
    assert len({t.yaxis for t in v1}) == 7, "six panes, one of them with two axes"
    assert [t.showlegend for t in v1].count(True) == 1


def test_marks_stand_where_they_happened_and_tell_why() -> None:
    marks = [Mark(1e9 - 30, "rollback", "rollout rolled back v2: <slower>", "#D55E00")]
    data = mark_data(marks, 1e9)
    assert data["x"].tolist() == [-30]
    assert data["text"] == ["rollout rolled back v2: &lt;slower&gt;"]
    shapes = mark_shapes(marks, 1e9)
    assert len(shapes) == 6
    assert {s["x0"] for s in shapes} == {-30}
    assert "rollback" in [w["text"] for w in live_words(marks, 1e9)]
    assert mark_shapes(marks, 1e9 + 200) == []


def test_words_of_marks_stand_above_the_curves_and_do_not_overlap() -> None:
    ago = {"begun": 75, "route": 50, "step": 40, "swap": 10}
    marks = [Mark(1e9 - seconds, word, "", "#888") for word, seconds in ago.items()]
    *titles, begun, step, swap = live_words(marks, 1e9)
    assert [w["text"] for w in (begun, step, swap)] == ["begun", "step", "swap"], "of two that are near, the later one"
    assert [w["x"] for w in (begun, step, swap)] == [-75, -40, -10]
    assert {(w["y"], w["yref"], w["yanchor"]) for w in (begun, step, swap)} == {(1, "y domain", "bottom")}
    first_row = [title["yshift"] for title in titles if title["y"] == 1]
    assert len(first_row) == 3
    assert min(first_row) >= begun["yshift"] + 1.3 * begun["font"]["size"], "a title stands where words are"
