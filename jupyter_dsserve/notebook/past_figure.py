"""Hours and days of versions, with what happened: pure functions to plotly and to SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from jupyter_dsserve.notebook.figures import folded
from jupyter_dsserve.notebook.past import Mark
from jupyter_dsserve.notebook.picture import Picture
from jupyter_dsserve.notebook.views import colour_of, dash_of
from jupyter_dsserve.protocol.records import StatsHistory, StatsPoint, StatsSeries

_GRID = "rgba(128,128,128,.25)"
_MAX_MARKS = 60
_MARGIN = 0.02  # of the time axis, on both sides
_DOT, _LONE_DOT = 3, 7  # px
_HEAD_PX = 12  # of the marks' heads, which the first title stands above
_TITLES = ("requests/s", "answers, ms: p95 (p50, p99 thin)", "errors")
# From bottom to top.
_DOMAINS = ([0.7, 1.0], [0.3, 0.63], [0.0, 0.2])

Value = Callable[[StatsPoint], float | None]
Values = list[float | None]


def past_figure(stats: StatsHistory, marks: Sequence[Mark]) -> go.Figure:
    """Three panes over one time axis, in this machine's time: requests/s, latencies, and errors in each step, a colour
    for each version; a vertical line at each mark, with its reason on hover. A point stands in the middle of its
    step; the axis is as long as what there is in the time that was asked for."""
    figure = go.Figure(layout=_layout(stats, marks))
    for each in stats.series:
        look = {"color": colour_of(each.version), "dash": dash_of(each.version)}
        name = _name(stats, each)
        for pane, label, unit, width, value in _LINES:
            at, values = _line(stats, each, value)
            figure.add_trace(
                go.Scatter(
                    x=[_when(moment) for moment in at],
                    y=values,
                    yaxis=f"y{pane + 1}" if pane else "y",
                    name=name,
                    legendgroup=name,
                    showlegend=pane == 0,
                    mode="lines+markers",
                    marker={"size": _dots(values)},
                    line={**look, "width": width},
                    opacity=1 if width > 1 else 0.6,
                    connectgaps=False,
                    hovertemplate=f"%{{y:{unit}<extra>{name} {label}</extra>",
                )
            )
        figure.add_trace(
            go.Bar(
                x=[_when(point.at + stats.step_s / 2) for point in each.points],
                y=[point.errors for point in each.points],
                width=900 * stats.step_s,
                yaxis="y3",
                name=name,
                legendgroup=name,
                showlegend=False,
                marker={"color": look["color"]},
                hovertemplate=f"%{{y}} errors<extra>{name}</extra>",
            )
        )
    return figure


def past_pictures(stats: StatsHistory, marks: Sequence[Mark]) -> str:
    """The same three panes as SVG, for pages where no widget shows; panes without values are left out."""
    since, until = _told(stats, marks)
    span_s = until - since
    drawn = []
    for title, unit, value in (
        ("requests/s", "", lambda p: p.requests_per_s),
        ("p95 of the answers", " ms", _ms("p95_s")),
        (f"errors in {stats.step_s // 60} min", "", lambda p: p.errors or None),
    ):
        lines = {}
        for each in stats.series:
            at, values = _line(stats, each, value)
            floats: npt.NDArray[np.float64] = np.array(values, float)
            lines[_name(stats, each)] = (np.minimum(np.array(at) - until, 0.0), floats)
        span = f"{_when(since):%a %d %H:%M} to {_when(until):%a %d %H:%M}"
        drawn.append(Picture(f"{title}, {span}", unit, span_s, until, height=90).svg(lines, marks))
    return "<br>".join(filter(None, drawn))


def _ms(name: str) -> Value:
    def value(point: StatsPoint) -> float | None:
        seconds = getattr(point, name)
        return None if seconds is None else 1000 * seconds

    return value


# Pane, what a mouse is told, its format, width, value.
_LINES: tuple[tuple[int, str, str, float, Value], ...] = (
    (0, "requests/s", ".2f}", 2, lambda p: p.requests_per_s),
    (1, "p95", ".0f} ms", 2, _ms("p95_s")),
    (1, "p50", ".0f} ms", 1, _ms("p50_s")),
    (1, "p99", ".0f} ms", 1, _ms("p99_s")),
)


def _line(stats: StatsHistory, series: StatsSeries, value: Value) -> tuple[list[float], Values]:
    """When and what; with a gap for the time in which the version was not loaded."""
    at: list[float] = []
    values: Values = []
    for point in series.points:
        middle = point.at + stats.step_s / 2
        if at and middle - at[-1] > 1.5 * stats.step_s:
            at.append(at[-1] + stats.step_s)
            values.append(None)
        at.append(middle)
        values.append(value(point))
    return at, values


def _dots(values: Values) -> list[int]:
    """How large each point is: one that has no neighbour, and so no line, is to be seen too."""
    has = [value is not None for value in values]
    alone = (not (before or after) for before, after in zip([False, *has[:-1]], [*has[1:], False], strict=True))
    return [_LONE_DOT if is_alone else _DOT for is_alone in alone]


def _told(stats: StatsHistory, marks: Sequence[Mark]) -> tuple[float, float]:
    """From when until when there is something to see in the time that was asked for: it may be much longer."""
    points = [point.at for each in stats.series for point in each.points]
    seen = [m.at for m in marks if stats.since <= m.at <= stats.until]
    since = min([*points, *seen], default=stats.since)
    until = max([*(at + stats.step_s for at in points), *seen], default=stats.until)
    return since, max(until, since + stats.step_s)


def _name(stats: StatsHistory, series: StatsSeries) -> str:
    """The version alone, where all are of one deployment."""
    is_one = len({each.deployment for each in stats.series}) == 1
    return series.version if is_one else f"{series.deployment}@{series.version}"


def _when(at: float) -> datetime:
    return datetime.fromtimestamp(at)  # noqa: DTZ006  # the reader's own time


def _layout(stats: StatsHistory, marks: Sequence[Mark]) -> dict[str, Any]:
    """Readable on a light and on a dark page."""
    shown = [m for m in marks if stats.since <= m.at <= stats.until][-_MAX_MARKS:]
    since, until = _told(stats, marks)
    margin = _MARGIN * (until - since)
    layout: dict[str, Any] = {
        "height": 460 + _HEAD_PX,
        "margin": {"l": 46, "r": 20, "t": 40 + _HEAD_PX, "b": 36},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888", "size": 10},
        "hovermode": "closest",
        "barmode": "stack",
        "legend": {"orientation": "h", "y": 1.06, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        "xaxis": {
            "type": "date",
            "range": [_when(since - margin), _when(until + margin)],
            "anchor": "y3",
            "gridcolor": _GRID,
            "zeroline": False,
        },
        "annotations": [
            *(_title(title, domain[1]) for title, domain in zip(_TITLES, _DOMAINS, strict=True)),
            *(_head(mark) for mark in shown),
        ],
        "shapes": [
            {
                "type": "line",
                "x0": _when(m.at),
                "x1": _when(m.at),
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": m.colour, "width": 1.3, "dash": "dot"},
            }
            for m in shown
        ],
    }
    for pane, domain in enumerate(_DOMAINS):
        axis = {"domain": domain, "rangemode": "tozero", "gridcolor": _GRID, "zerolinecolor": _GRID, "nticks": 5}
        layout[f"yaxis{pane + 1}" if pane else "yaxis"] = axis
    return layout


def _title(text: str, top: float) -> dict[str, Any]:
    where = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return {"text": text, "showarrow": False, "font": {"size": 11}, "yshift": _HEAD_PX if top == 1 else 0, **where}


def _head(mark: Mark) -> dict[str, Any]:
    where = {"x": _when(mark.at), "y": 1, "yref": "paper", "yanchor": "bottom"}
    return {"text": "▼", "hovertext": folded(mark.text), "showarrow": False, "font": {"color": mark.colour}, **where}
