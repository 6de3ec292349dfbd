"""The live plots of a panel: one figure with six panes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jupyter_dsserve.bench.live import LiveFigure
from jupyter_dsserve.notebook.figures import (
    COLUMNS,
    NARROW_COLUMNS,
    NUM_HEADS,
    TIME_AXES,
    live_data,
    live_layout,
    live_traces,
    live_words,
    mark_data,
    mark_shapes,
    mark_traces,
    placed,
)
from jupyter_dsserve.notebook.past import Mark
from jupyter_dsserve.notebook.series import Series
from jupyter_dsserve.notebook.zoom import LIVE, Range, Zoom, is_same

_NUDGE_S = 0.001  # too little to see


class Plots:
    """Holds the figure, one for all panes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._columns = COLUMNS
        self._versions: list[str] = []
        self._zoom, self._told, self._drawn_at = Zoom(), LIVE, 0.0
        self.figure = self._new()
        self._place()

    def _new(self) -> Any:
        figure = LiveFigure(data=mark_traces(), layout=live_layout(self._name))
        # As wide as the page; a double click ends a zoom, and does not fit the axes to the data.
        look = {"responsive": True, "displayModeBar": False, "doubleClick": "reset"}
        figure._config = {**figure._config, **look}
        return figure

    def renew(self) -> None:
        """A figure that is displayed a second time takes no more updates (plotly)."""
        self.figure.close()
        self.figure, self._versions = self._new(), []
        self._told = LIVE
        self.span(self._zoom.window_s)

    def fit(self, is_narrow: bool) -> None:
        """Panes beside one another as the page has room for them."""
        columns = NARROW_COLUMNS if is_narrow else COLUMNS
        if columns != self._columns:
            self._columns = columns
            self._place()

    def span(self, window_s: float) -> None:
        """Show the last ``window_s`` seconds from the next drawing on; a zoom ends."""
        self._zoom = Zoom(window_s=window_s)
        self._place()

    def _place(self) -> None:
        with self.figure.batch_update():
            self.figure.update_layout(placed(self._zoom.window_s, self._columns))
            for column, head in enumerate(self.figure.data[:NUM_HEADS]):
                head.visible = column < self._columns

    def draw(self, versions: Sequence[str], series: Series, marks: Sequence[Mark], now: float) -> None:
        """Everything, in one message to the browser. ``now``: seconds since the epoch."""
        try:
            self._draw(versions, series, marks, now)
        except AttributeError:
            # plotly looks at pandas as soon as a cell begins to import it; what is not drawn now is a second later.
            if not _is_half_imported("pandas"):
                self._draw(versions, series, marks, now)

    def _draw(self, versions: Sequence[str], series: Series, marks: Sequence[Mark], now: float) -> None:
        if list(versions) != self._versions:
            self._exchange(versions)
        window_s = self._zoom.window_s
        heads, words = mark_data(marks, now, window_s), live_words(marks, now, window_s, self._columns)
        shapes = mark_shapes(marks, now, window_s)
        lines = [line for version in versions for line in live_data(series.curves(version, now, window_s))]
        shown = self._shown(now)
        with self.figure.batch_update():
            # Not from the start: what is drawn before it stands on the page does not know how wide that is.
            self.figure.layout.autosize = True
            for trace in self.figure.data[:NUM_HEADS]:
                trace.update(heads)
            for trace, (x, y) in zip(self.figure.data[NUM_HEADS:], lines, strict=True):
                trace.x, trace.y = x, y
            # A double click brings back what the page was made with, which may be another window.
            has_strayed = any(not is_same(self._range(axis), shown) for axis in TIME_AXES)
            if shown != self._told or has_strayed:
                axes = [self.figure.layout[axis] for axis in TIME_AXES]
                if any(tuple(axis.range) == shown for axis in axes):
                    # The page said so itself, and is told only what is new; but a word from before may be on its way.
                    shown = (shown[0], shown[1] + _NUDGE_S)
                for axis in axes:
                    axis.update(range=list(shown), autorange=False)
            if shapes or self.figure.layout.shapes:
                self.figure.layout.shapes, self.figure.layout.annotations = shapes, words

        self._told, self._drawn_at = shown, now

    def _shown(self, now: float) -> Range:
        """Of the time axes at ``now``. What a person zooms to, the page writes into the layout: of one axis, or of all
        that go with it."""
        ranges = [self._range(axis) for axis in TIME_AXES]
        seen = next((r for r in ranges if r != self._told), self._told)
        self._zoom = self._zoom.after(seen, self._told, self._drawn_at)
        return self._zoom.range(now)

    def _range(self, axis: str) -> Range:
        low, high = self.figure.layout[axis].range
        return low, high

    def _exchange(self, versions: Sequence[str]) -> None:
        """Other lines: those of ``versions``."""
        self.figure.data = self.figure.data[:NUM_HEADS]
        self.figure.add_traces([trace for version in versions for trace in live_traces(version)])
        self._versions = list(versions)


def _is_half_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))
