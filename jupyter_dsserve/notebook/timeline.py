"""A call's spans on a time axis: a pure function to plotly."""

from __future__ import annotations

import plotly.graph_objects as go

from jupyter_dsserve.notebook.traces import Trace, told_of
from jupyter_dsserve.notebook.views import COLOURS, colour_of

_GRID = "rgba(128,128,128,.25)"
_GREY = "rgba(128,128,128,.55)"
# What waits is grey, what computes has a colour.
_COLOUR_OF = {"tokenize": COLOURS[3], "prefill": COLOURS[1], "decode": COLOURS[2], "forward": COLOURS[2]}


def timeline_figure(trace: Trace) -> go.Figure:
    """A bar for each span, in milliseconds from the call's arrival, in the order of the tree."""
    names = [f"{'  ' * depth}{span.name}" for span, depth in zip(trace.spans, trace.depths(), strict=True)]
    whole = colour_of(trace.version) if trace.version else _GREY
    colours = [_COLOUR_OF.get(s.name, whole if not number else _GREY) for number, s in enumerate(trace.spans)]
    bars = go.Bar(
        x=[1000 * s.duration_s for s in trace.spans],
        base=[1000 * s.start_s for s in trace.spans],
        y=list(range(len(trace.spans))),
        orientation="h",
        marker={"color": colours},
        text=[f"{1000 * s.duration_s:.1f} ms" for s in trace.spans],
        customdata=[[s.name, told_of(s)] for s in trace.spans],
        hovertemplate="%{customdata[0]}: %{x:.2f} ms<br>%{customdata[1]}<extra></extra>",
    )
    layout = {
        "height": 90 + 26 * len(names),
        "margin": {"l": 130, "r": 20, "t": 30, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#888"},
        "showlegend": False,
        "title": {"text": trace.title, "font": {"size": 12}},
        "xaxis": {"title": {"text": "ms"}, "gridcolor": _GRID, "zeroline": False},
        "yaxis": {"autorange": "reversed", "tickvals": list(range(len(names))), "ticktext": names},
    }
    return go.Figure(bars, layout)
