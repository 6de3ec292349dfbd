"""Pure functions from data to plotly: what is drawn, not how it is kept up to date."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from jupyter_dsserve.notebook.past import Mark
from jupyter_dsserve.notebook.series import WINDOW_S, Curves, Floats
from jupyter_dsserve.notebook.views import colour_of, dash_of
from jupyter_dsserve.protocol.records import LedgerStatus

_GRID = "rgba(128,128,128,.25)"
_FREE, _OTHERS = "rgba(128,128,128,.1)", "rgba(128,128,128,.55)"

COLUMNS, NARROW_COLUMNS = 3, 2  # of panes; the latter where the page is narrow
NUM_HEADS = COLUMNS  # of marks: one above each column
_GAP_X = {COLUMNS: 0.065, NARROW_COLUMNS: 0.13}  # of the figure's width: room for the numbers beside an axis
_PANE_PX, _GAP_PX = 128, 64
_LEGEND_PX = 35  # above the first row
_MARGIN_PX = {"l": 36, "r": 36, "t": 60, "b": 36}
_MAX_MARKS = 12
_WORD_WIDTH = 0.16  # that much of the time axis a word takes
_WORDS_HIGH, _TITLE_HIGH = 5, 4  # px above a pane; titles of the first row stand above the marks' words
_WORDS_PX = 16


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that each version has: ``field`` of its `Curves`, in the pane ``pane``; ``look`` is ``main`` (as wide as
    its version's lines are), ``thin``, or ``crosses`` (points without a line)."""

    pane: int
    field: str
    name: str
    look: str = "main"
    hover: str = "%{y:.0f} ms"


# Row by row, broken where a narrow page breaks them. The memory has a second axis in the last one.
_PANES = (
    "answers, ms:\np95 (p50, p99 thin)",
    "first token p95, ms",
    "tokens/s",
    "requests/s\n(× errors)",
    "in flight\n(in line: thin)",
    "KV cache, %\n(memory, MiB: thin)",
)
_MEMORY = len(_PANES)
_HEADS = _MEMORY + 1  # and the next two: axes from 0 to 1 over the first row, for the heads of marks
_LINES = (
    _Line(0, "p95_ms", "p95"),
    _Line(0, "p50_ms", "p50", "thin"),
    _Line(0, "p99_ms", "p99", "thin"),
    _Line(1, "first_token_ms", "first token p95"),
    _Line(2, "tokens_per_s", "tokens/s", hover="%{y:.0f}"),
    _Line(3, "requests_per_s", "requests/s", hover="%{y:.1f}"),
    _Line(3, "errors_per_s", "errors/s", "crosses", "%{y:.1f}"),
    _Line(4, "in_flight", "in flight", hover="%{y:.0f}"),
    _Line(4, "queued", "in line", "thin", "%{y:.0f}"),
    _Line(5, "kv", "KV cache", hover="%{y:.1f} %"),
    _Line(_MEMORY, "memory", "memory", "thin", "%{y:,.0f} MiB"),
)


def live_traces(version: str) -> list[go.Scatter]:
    """A version's lines, without data yet: in its colour and its dash, one of them in the legend."""
    return [_trace(version, line) for line in _LINES]


def live_data(curves: Curves) -> list[tuple[Floats, Floats]]:
    """x and y of each of `live_traces`."""
    return [(curves.ago_s, getattr(curves, line.field)) for line in _LINES]


def _trace(version: str, line: _Line) -> go.Scatter:
    colour, is_main = colour_of(version), line.look == "main"
    look: dict[str, Any] = {"line": {"color": colour, "dash": dash_of(version), "width": 2.2 if is_main else 1}}
    if line.look == "crosses":
        look = {"marker": {"color": colour, "symbol": "x", "size": 6}}
    # Axes are those of the pane; memory shares the x axis of the last.
    x_axis, y_axis = _axis(min(line.pane, len(_PANES) - 1)), _axis(line.pane)
    return go.Scatter(
        mode="markers" if line.look == "crosses" else "lines",
        xaxis=f"x{x_axis}",
        yaxis=f"y{y_axis}",
        name=version,
        legendgroup=version,
        showlegend=line is _LINES[0],
        connectgaps=False,
        opacity=1 if is_main or line.look == "crosses" else 0.7,
        hovertemplate=f"{line.hover}<extra>{version} {line.name}</extra>",
        **look,
    )


def mark_traces() -> list[go.Scatter]:
    """The heads of the marks, above each column of panes: what a mouse finds."""
    return [
        go.Scatter(
            mode="markers",
            xaxis=f"x{_axis(column)}",
            yaxis=f"y{_axis(_HEADS + column)}",
            marker={"symbol": "triangle-down", "size": 10},
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            cliponaxis=False,
        )
        for column in range(NUM_HEADS)
    ]


def mark_data(marks: Sequence[Mark], now: float, window_s: float = WINDOW_S) -> dict[str, Any]:
    """Of each of `mark_traces`: where the heads stand, their colours, and what they say."""
    shown = _last(marks, now, window_s)
    return {
        "x": np.array([m.at - now for m in shown], np.float32),
        "y": np.ones(len(shown), np.float32),
        "marker.color": [m.colour for m in shown],
        "text": [folded(m.text) for m in shown],
    }


def mark_shapes(marks: Sequence[Mark], now: float, window_s: float = WINDOW_S) -> list[dict[str, Any]]:
    """A vertical line at each mark, in every pane."""
    return [
        {
            "type": "line",
            "xref": f"x{_axis(pane)}",
            "yref": f"y{_axis(pane)} domain",
            "x0": round(m.at - now, 2),
            "x1": round(m.at - now, 2),
            "y0": 0,
            "y1": 1,
            "line": {"color": m.colour, "width": 1.3, "dash": "dot"},
        }
        for m in _last(marks, now, window_s)
        for pane in range(len(_PANES))
    ]


def live_words(
    marks: Sequence[Mark], now: float, window_s: float = WINDOW_S, columns: int = COLUMNS
) -> list[dict[str, Any]]:
    """What is written on the figure: the panes' titles, and each mark's word above its line over the first pane, where
    no curve is, unless a later word is too near."""
    told: list[Mark] = []
    for mark in reversed(_last(marks, now, window_s)):
        if not told or mark.at <= told[-1].at - _WORD_WIDTH * window_s:
            told.append(mark)
    words = [
        {
            "text": m.word,
            "x": round(m.at - now, 2),
            "y": 1,
            "xref": "x",
            "yref": "y domain",
            "xanchor": "center",
            "yanchor": "bottom",
            "yshift": _WORDS_HIGH,
            "showarrow": False,
            "font": {"size": 10, "color": m.colour},
        }
        for m in reversed(told)
    ]
    return [*_titles(columns), *words]


def _last(marks: Sequence[Mark], now: float, window_s: float) -> list[Mark]:
    """Not all of them: somebody may change the route every second."""
    return [m for m in marks if m.at > now - window_s][-_MAX_MARKS:]


def folded(text: str, width: int = 70) -> str:
    """As plotly's hover takes it, which reads some HTML."""
    return "<br>".join(textwrap.wrap(html.escape(text), width))


def _axis(index: int) -> str:
    """plotly's number of an axis: none for the first."""
    return str(index + 1) if index else ""


def height_px(columns: int) -> int:
    """Of the live figure."""
    return _height(columns) + _MARGIN_PX["t"] + _MARGIN_PX["b"]


def _height(columns: int) -> int:
    """Of all panes, in px."""
    rows = len(_PANES) // columns
    return rows * _PANE_PX + (rows - 1) * _GAP_PX


def _domains(pane: int, columns: int) -> tuple[list[float], list[float]]:
    """Where a pane lies, from left to right and from bottom to top."""
    gap = _GAP_X[columns]
    width = (1 - (columns - 1) * gap) / columns
    row, column = divmod(pane, columns)
    left, top = column * (width + gap), 1 - row * (_PANE_PX + _GAP_PX) / _height(columns)
    return [left, left + width], [max(top - _PANE_PX / _height(columns), 0.0), top]


# In each pane seconds ago; they show the same part of it.
TIME_AXES = tuple(f"xaxis{_axis(pane)}" for pane in range(len(_PANES)))


def _titles(columns: int) -> list[dict[str, Any]]:
    between = " " if columns == COLUMNS else "<br>"
    return [
        {
            "text": title.replace("\n", between),
            "x": _domains(pane, columns)[0][0],
            "y": _domains(pane, columns)[1][1],
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left",
            "yanchor": "bottom",
            "align": "left",
            "yshift": _TITLE_HIGH + (_WORDS_PX if pane < columns else 0),
            "showarrow": False,
            "font": {"size": 11},
        }
        for pane, title in enumerate(_PANES)
    ]


def time_axis(window_s: float) -> dict[str, Any]:
    """What all time axes say of the last ``window_s`` seconds: seconds, or minutes where there are many."""
    if window_s <= WINDOW_S:
        return {"tickmode": "auto", "tickvals": None, "ticktext": None, "title": {"text": "seconds ago"}}
    step_s = window_s / 6
    values = [-step_s * i for i in range(6, -1, -1)]
    words = [f"{abs(value) / 60:g}" for value in values]
    return {"tickmode": "array", "tickvals": values, "ticktext": words, "title": {"text": "minutes ago"}}


def placed(window_s: float, columns: int = COLUMNS) -> dict[str, Any]:
    """Of the live figure's layout, what another number of columns or another window changes, but for its height:
    plotly takes one that changes as a word that its width shall not, and the page says it."""
    axis = time_axis(window_s)
    title = axis.pop("title")
    layout: dict[str, Any] = {"legend.y": 1 + _LEGEND_PX / _height(columns), "annotations": _titles(columns)}
    for pane in range(len(_PANES)):
        across, up = _domains(pane, columns)
        is_below = pane >= len(_PANES) - columns
        # Its name alone: the room around it stays as it was made.
        more = {"domain": across, "showticklabels": is_below, "title.text": title["text"] if is_below else ""}
        layout |= {f"xaxis{_axis(pane)}.{name}": value for name, value in (axis | more).items()}
        layout[f"yaxis{_axis(pane)}.domain"] = up
    return layout


def live_layout(name: str) -> dict[str, Any]:
    """Of the live figure: panes in rows, over one window of time that ends now, to be `placed`. Readable on a light and
    on a dark page."""
    layout: dict[str, Any] = {
        "height": height_px(COLUMNS),  # until the page says it
        "margin": _MARGIN_PX,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888", "size": 10},
        "hovermode": "closest",
        "uirevision": name,  # a zoom stays while data arrive
        "legend": {"orientation": "h", "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
    }
    for pane in range(len(_PANES)):
        layout[f"xaxis{_axis(pane)}"] = {
            "anchor": f"y{_axis(pane)}",
            "range": [-WINDOW_S, 0],
            "matches": "x" if pane else None,
            "gridcolor": _GRID,
            "zeroline": False,
            "title": {"standoff": 4},
        }
        layout[f"yaxis{_axis(pane)}"] = {
            "anchor": f"x{_axis(pane)}",
            "rangemode": "tozero",
            "gridcolor": _GRID,
            "zerolinecolor": _GRID,
            "nticks": 5,
        }
    last = len(_PANES) - 1
    layout[f"yaxis{_axis(_MEMORY)}"] = {
        "overlaying": f"y{_axis(last)}",
        "anchor": f"x{_axis(last)}",
        "side": "right",
        "rangemode": "tozero",
        "showgrid": False,
        "zeroline": False,
        "nticks": 5,
        "tickmode": "auto",  # not where the other axis has its ticks
    }
    for column in range(NUM_HEADS):
        layout[f"yaxis{_axis(_HEADS + column)}"] = {
            "overlaying": f"y{_axis(column)}",
            "anchor": f"x{_axis(column)}",
            "range": [0, 1],
            "fixedrange": True,
            "visible": False,
        }
    return layout


def ledger_figure(ledger: LedgerStatus) -> go.Figure:
    """A bar for each device in GiB: what each version holds in its colour, what may still be held, and in grey what
    other processes have."""
    figure = go.Figure(layout=_ledger_layout(len(ledger.devices)))
    for device in ledger.devices:
        pieces = [(h.replica, h.bytes, colour_of(h.owner.partition("@")[2])) for h in device.held]
        pieces.append(("free", device.free_bytes, _FREE))
        pieces += [(o.owner, o.bytes, _OTHERS) for o in device.others]
        for name, num_bytes, colour in pieces:
            figure.add_trace(
                go.Bar(
                    x=[num_bytes / 2**30],
                    y=[device.id],
                    name=name,
                    orientation="h",
                    marker={"color": colour, "line": {"color": "#888", "width": 0.5}},
                    hovertemplate="%{x:.2f} GiB<extra>%{fullData.name}</extra>",
                )
            )
    return figure


def _ledger_layout(num_devices: int) -> dict[str, Any]:
    """Readable on a light and on a dark page."""
    return {
        "barmode": "stack",
        "height": 110 + 40 * num_devices,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888"},
        "showlegend": False,
        "xaxis": {"title": {"text": "GiB"}, "gridcolor": _GRID, "zeroline": False},
        "yaxis": {"autorange": "reversed"},
    }
