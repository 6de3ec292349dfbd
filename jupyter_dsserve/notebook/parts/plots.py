"""The live plots of a panel: one figure with six panes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from jupyter_dsserve.notebook.figures import (
    NUM_HEADS,
    live_data,
    live_layout,
    live_traces,
    live_words,
    mark_data,
    mark_shapes,
    mark_traces,
)
from jupyter_dsserve.notebook.past import Mark
from jupyter_dsserve.notebook.series import Series


class Plots:
    """Holds the figure. One for all panes: each figure brings five megabytes of plotly into the page."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.figure = self._new()
        self._versions: list[str] = []

    def _new(self) -> Any:
        figure = go.FigureWidget(data=mark_traces(), layout=live_layout(self._name))
        figure._config = {**figure._config, "responsive": True, "displayModeBar": False}  # as wide as the page
        return figure

    def renew(self) -> None:
        """A figure that is displayed a second time takes no more updates (plotly)."""
        self.figure.close()
        self.figure, self._versions = self._new(), []

    def draw(self, versions: Sequence[str], series: Series, marks: Sequence[Mark], now: float) -> None:
        """Everything, in one message to the browser. ``now``: seconds since the epoch."""
        if list(versions) != self._versions:
            self._exchange(versions)
        heads, shapes, words = mark_data(marks, now), mark_shapes(marks, now), live_words(marks, now)
        lines = [line for version in versions for line in live_data(series.curves(version, now))]
        with self.figure.batch_update():
            # Not from the start: what is drawn before it stands on the page does not know how wide that is.
            self.figure.layout.autosize = True
            for trace in self.figure.data[:NUM_HEADS]:
                trace.update(heads)
            for trace, (x, y) in zip(self.figure.data[NUM_HEADS:], lines, strict=True):
                trace.x, trace.y = x, y
            if shapes or self.figure.layout.shapes:
                self.figure.layout.shapes, self.figure.layout.annotations = shapes, words

    def _exchange(self, versions: Sequence[str]) -> None:
        """Other lines: those of ``versions``."""
        self.figure.data = self.figure.data[:NUM_HEADS]
        self.figure.add_traces([trace for version in versions for trace in live_traces(version)])
        self._versions = list(versions)
