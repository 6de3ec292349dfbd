"""Pure functions from data to plotly: what is drawn, not how it is kept up to date."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from jupyter_dsserve.notebook.series import WINDOW_S, Latencies
from jupyter_dsserve.notebook.views import colour_of

_GRID = "rgba(128,128,128,.25)"


def latency_traces(version: str, data: Latencies) -> list[go.Scatter]:
    """Two lines of a version: p50 dotted, p95 drawn through."""
    colour = colour_of(version)
    look = {"mode": "lines", "x": data.ago_s, "legendgroup": version, "connectgaps": False}
    hover = "%{y:.1f} ms<extra>%{fullData.name}</extra>"
    p50 = go.Scatter(
        y=data.p50_ms, name=f"{version} p50", line={"color": colour, "dash": "dot"}, hovertemplate=hover, **look
    )
    p95 = go.Scatter(y=data.p95_ms, name=f"{version} p95", line={"color": colour}, hovertemplate=hover, **look)
    return [p50, p95]


def latency_layout(name: str) -> dict[str, Any]:
    """Of the live figure: a window that ends now. Readable on a light and on a dark page."""
    return {
        "title": {"text": f"{name}: latency of the answers of the last 30 s", "font": {"size": 14}},
        "height": 300,
        "margin": {"l": 60, "r": 20, "t": 40, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888"},
        "hovermode": "x",
        "uirevision": name,  # a zoom stays while data arrive
        "xaxis": {"title": {"text": "seconds ago"}, "range": [-WINDOW_S, 0], "gridcolor": _GRID, "zeroline": False},
        "yaxis": {"title": {"text": "ms"}, "rangemode": "tozero", "gridcolor": _GRID, "zerolinecolor": _GRID},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
    }
