"""Pure functions from a report to plotly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jupyter_dsserve.bench.measure import Point
from jupyter_dsserve.bench.report import Report

_GRID = "rgba(128,128,128,.25)"
# Okabe and Ito (2008): told apart by colour-blind people, readable on light and dark.
_TOKENS, _FIRST, _EACH = "#0072B2", "#D55E00", "#009E73"

Value = Callable[[Point], float | None]


def sweep_figure(report: Report) -> go.Figure:
    """Three plots side by side over the load: output tokens/s, and in ms the time to the first token and a token after
    (p50 dotted, p95 drawn through; an SLO as a dashed line)."""
    titles = ("output tokens/s", "first token, ms", "a token after, ms")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.07)
    figure.update_annotations(font={"size": 13})  # the titles
    points, slo = report.points, report.plan.slo
    figure.add_trace(_line(points, "tokens/s", _TOKENS, lambda p: p.output_tokens_per_s), row=1, col=1)
    for col, (name, colour, most_s) in enumerate(
        (("first_token_s", _FIRST, slo.first_token_s), ("per_token_s", _EACH, slo.per_token_s)), start=2
    ):
        for quantile, dash in (("p50", "dot"), ("p95", "solid")):
            figure.add_trace(_line(points, quantile, colour, _ms(name, quantile), dash), row=1, col=col)
        if most_s is not None:
            slo_ms = 1000 * most_s
            line, words = {"color": "#888", "dash": "dash"}, {"text": f"SLO {slo_ms:g} ms", "font": {"size": 10}}
            figure.add_hline(slo_ms, line=line, annotation=words, annotation_position="top left", row=1, col=col)
    figure.update_layout(**_layout(report))
    figure.update_xaxes(**_load_axis(report))
    figure.update_yaxes(rangemode="tozero", gridcolor=_GRID, zerolinecolor=_GRID)
    return figure


def _line(points: Sequence[Point], name: str, colour: str, value: Value, dash: str = "solid") -> go.Scatter:
    return go.Scatter(
        x=[p.load.value for p in points],
        y=[value(p) for p in points],
        name=name,
        mode="lines+markers",
        line={"color": colour, "dash": dash},
        hovertemplate="%{x}: %{y:.1f}<extra>%{fullData.name}</extra>",
    )


def _ms(name: str, quantile: str) -> Value:
    def value(point: Point) -> float | None:
        seconds = getattr(getattr(point, name), quantile)
        return None if seconds is None else 1000 * seconds

    return value


def _layout(report: Report) -> dict[str, Any]:
    """Readable on a light and on a dark page."""
    return {
        "title": {
            "text": f"{report.model}: p95, and dotted p50, over the {report.points[0].load.kind}",
            "font": {"size": 14},
        },
        "height": 320,
        "margin": {"l": 50, "r": 20, "t": 80, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888"},
        "showlegend": False,
    }


def _load_axis(report: Report) -> dict[str, Any]:
    """Sweeps double: a logarithmic axis, with a mark at each load."""
    loads = [p.load.value for p in report.points]
    unit = "clients" if report.plan.concurrency else "requests/s"
    marks = {"tickvals": loads, "ticktext": [f"{value:g}" for value in loads]}
    return {"type": "log", "title": {"text": unit}, "gridcolor": _GRID, "zeroline": False, **marks}
