"""Pure functions from data to plotly: what is drawn, not how it is kept up to date."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from jupyter_dsserve.notebook.series import WINDOW_S, Latencies
from jupyter_dsserve.notebook.views import colour_of
from jupyter_dsserve.protocol.records import LedgerStatus

_GRID = "rgba(128,128,128,.25)"
_FREE, _OTHERS = "rgba(128,128,128,.1)", "rgba(128,128,128,.55)"


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
