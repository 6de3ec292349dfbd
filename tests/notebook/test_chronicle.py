"""Hours of versions with what happened to them, as a plot, as a picture and as tables."""

from __future__ import annotations

import re

import pytest

from jupyter_dsserve.notebook.chronicle import Chronicle
from jupyter_dsserve.notebook.past_figure import past_figure
from jupyter_dsserve.notebook.stats import StatsTable
from jupyter_dsserve.notebook.views import History
from jupyter_dsserve.protocol.records import Event, StatsPoint, StatsSeries

NOW = 1_769_850_000.0


def point(ago_s: float, requests: int, p95_s: float | None = 0.2, errors: int = 0) -> StatsPoint:
    return StatsPoint(
        NOW - ago_s, requests, errors, requests / 60, 0, 5 * requests, requests / 12, p95_s, p95_s, p95_s, p95_s,
        1, 0, 0.5, 1000, 1,
    )  # fmt: skip


def hour(*series: StatsSeries) -> StatsTable:
    return StatsTable(NOW - 3600, NOW, 60, list(series))


EVENTS = [
    Event(1, NOW - 1800, "ready", "demo", "v2", reason="loaded"),
    Event(2, NOW - 1700, "rollout_rolled_back", "demo", "v2", reason="latency 3 × <stable's>"),
]
V1 = StatsSeries("demo", "v1", [point(3600, 60), point(3540, 120), point(600, 30, errors=2)])
V2 = StatsSeries("demo", "v2", [point(1800, 6, None)])


def test_each_version_has_its_lines_with_gaps_where_it_was_not_loaded() -> None:
    figure = Chronicle(hour(V1, V2), History(EVENTS)).figure()
    requests, p95, _, _, errors = figure.data[:5]
    assert requests.name == "v1"
    assert list(requests.y) == [1.0, 2.0, None, 0.5]
    assert [f"{at:%M:%S}" for at in requests.x[:2]] == ["00:30", "01:30"], "the middle of the minute"
    assert p95.y[0] == 200
    assert list(errors.y) == [0, 0, 2]
    assert {t.line.color for t in figure.data if t.name == "v2" and t.type == "scatter"} == {"#D55E00"}
    assert [t.showlegend for t in figure.data].count(True) == 2


def test_the_time_axis_is_as_long_as_what_there_is_and_a_point_alone_is_seen() -> None:
    figure = Chronicle(hour(V1, V2), History()).figure()
    begin, end = ((at.timestamp() - NOW) / 60 for at in figure.layout.xaxis.range)
    assert begin == pytest.approx(-60 - 0.02 * 51)
    assert end == pytest.approx(-9 + 0.02 * 51), "the last minute with numbers is ten minutes old"
    two_and_one, alone = (next(t for t in figure.data if t.name == version) for version in ("v1", "v2"))
    small, *_, large = two_and_one.marker.size
    assert list(two_and_one.marker.size) == [small, small, small, large]
    assert list(alone.marker.size) == [large]
    assert large > 2 * small
    marked = Chronicle(hour(V2), History([Event(1, NOW - 60, "route", "demo", reason="by hand")])).figure()
    assert marked.layout.xaxis.range[1].timestamp() > NOW - 60, "a mark is cut off"


def test_the_axis_of_a_single_minute_is_a_minute() -> None:
    begin, end = past_figure(hour(V2), ()).layout.xaxis.range
    assert (end - begin).total_seconds() == pytest.approx(1.04 * 60)


def test_tables_stand_below_one_another() -> None:
    html = Chronicle(hour(V1), History(EVENTS))._tables()["text/html"]
    assert html.count("<table") == 2
    assert "flex" not in html, "side by side they are wider than a page"


def test_what_moved_traffic_is_marked_with_its_reason_and_what_was_before_is_not() -> None:
    before = Event(0, NOW - 4000, "activated", "demo", "v1")
    figure = Chronicle(hour(V1), History([before, *EVENTS])).figure()
    heads = [a.hovertext for a in figure.layout.annotations if a.hovertext]
    assert heads == ["rollout rolled back v2: latency 3 × &lt;stable&#x27;s&gt;"]
    assert len(figure.layout.shapes) == 1


def test_a_long_reason_is_folded() -> None:
    event = Event(1, NOW - 60, "rollout_rolled_back", "demo", "v1", reason="a word " * 30)
    figure = Chronicle(hour(V1), History([event])).figure()
    [head] = [a.hovertext for a in figure.layout.annotations if a.hovertext]
    assert max(map(len, head.split("<br>"))) <= 70


def test_versions_of_several_deployments_are_told_apart() -> None:
    figure = past_figure(hour(V1, StatsSeries("other", "v1", [point(600, 1)])), ())
    assert {t.name for t in figure.data} == {"demo@v1", "other@v1"}


def test_where_no_widget_shows_there_are_pictures() -> None:
    html = Chronicle(hour(V1, V2), History(EVENTS))._repr_mimebundle_()["text/html"]
    pictures = re.findall(r"<svg .*?</svg>", html)
    assert [re.findall(r">(requests/s|p95|errors)", p)[0] for p in pictures] == ["requests/s", "p95", "errors"]
    assert "rollout rolled back v2: latency 3 × &lt;stable&#x27;s&gt;" in pictures[0]
    curve = re.search(r'd="(M[^"]*)" fill="none" stroke="#0072B2"', pictures[0])
    assert curve
    assert re.fullmatch(r"M\d+\.\d \d+\.\dL\d+\.\d \d+\.\dM\d+\.\d \d+\.\dh2", curve[1]), "two, a gap, and one"
    assert "v2" in re.findall(r">(v\d)<", pictures[0])


def test_a_time_without_versions_has_no_pictures() -> None:
    assert "<svg" not in Chronicle(hour(), History())._repr_mimebundle_()["text/html"]
