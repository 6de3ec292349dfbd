"""What the live plots show of time, after people zoomed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from jupyter_dsserve.notebook.figures import TIME_AXES
from jupyter_dsserve.notebook.parts.plots import Plots
from jupyter_dsserve.notebook.series import Series
from jupyter_dsserve.notebook.zoom import LIVE, Zoom

NOW = 1e9


def test_a_zoom_stays_with_its_moment() -> None:
    zoom = Zoom().after((-60, -30), LIVE, NOW)
    assert zoom.range(NOW) == (-60, -30)
    assert zoom.range(NOW + 10) == (-70, -40)


def test_what_the_page_was_told_is_no_zoom() -> None:
    zoom = Zoom((NOW - 60, NOW - 30))
    told = zoom.range(NOW + 5)
    assert zoom.after((round(told[0], 3), round(told[1], 3)), told, NOW + 5) == zoom
    assert Zoom().after(LIVE, LIVE, NOW) == Zoom()


def test_a_zoom_ends_with_a_double_click_and_when_its_moment_is_gone() -> None:
    zoom = Zoom((NOW - 60, NOW - 30))
    assert zoom.after(LIVE, (-61, -31), NOW + 1) == Zoom()
    assert zoom.range(NOW + 89) == (-149, -119)
    assert zoom.range(NOW + 91) == LIVE


def test_while_a_cell_imports_pandas_nothing_is_drawn_and_nothing_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    plots, coming = Plots("demo"), ModuleType("pandas")
    coming.__spec__ = ModuleSpec("pandas", None)
    coming.__spec__._initializing = True  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pandas", coming)
        plots.draw(["v1"], Series(), [], NOW)
    plots.draw(["v1"], Series(), [], NOW)
    assert "v1" in [trace.name for trace in plots.figure.data]
    plots.figure.close()


def test_the_figure_goes_with_what_the_page_says() -> None:
    plots = Plots("demo")

    def shown(second: float) -> set[tuple[float, ...]]:
        plots.draw([], Series(), [], NOW + second)
        return {tuple(plots.figure.layout[axis].range) for axis in TIME_AXES}

    assert shown(0) == {LIVE}
    plots.figure.plotly_relayout({"xaxis4.range[0]": -60, "xaxis4.range[1]": -30})  # as a page does
    assert shown(1) == {(-61, -31)}, "in each pane"
    assert shown(5) == {(-65, -35)}
    plots.span(3600)
    assert shown(6) == {(-3600, 0)}, "a zoom ends with the window"
    assert plots.figure.layout.xaxis4.title.text == "minutes ago"
    assert plots.figure.layout.xaxis4.ticktext == ("60", "50", "40", "30", "20", "10", "0")
    assert not plots.figure.layout.xaxis.title.text, "below the panes only"
    plots.figure.plotly_relayout({"xaxis.range": list(LIVE)})  # a double click: what the page was made with
    shown(7)
    assert shown(8) == {(-3600, 0)}
    plots.span(120)
    shown(5)
    plots.figure.plotly_relayout({"xaxis.range": list(LIVE)})
    shown(6)  # told something new, so that it overtakes what was on its way
    assert shown(7) == {LIVE}
    plots.figure.close()
