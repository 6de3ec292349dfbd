"""A figure that is as wide as its place on the page, from the start and when that changes."""

from __future__ import annotations

import anywidget
import ipywidgets as w
import plotly.graph_objects as go

from jupyter_dsserve.bench.live import LiveFigure

# plotly draws a widget before it stands on the page, 700 pixels wide, and looks again only when the window changes.
_ESM = """
function render({ el }) {
  const tell = () => window.dispatchEvent(new Event("resize"));
  let wide = 0;
  const observer = new ResizeObserver(() => {
    if (el.clientWidth === wide) return;
    wide = el.clientWidth;
    tell();
  });
  observer.observe(el);
  document.addEventListener("plotlywidget-after-render", tell);
  return () => { observer.disconnect(); document.removeEventListener("plotlywidget-after-render", tell); };
}

export default { render };
"""


class _Rule(anywidget.AnyWidget):
    """As wide as what it stands in, and no pixel high: it tells the page's plots when that changes."""

    _esm = _ESM


def fitted(figure: go.Figure) -> w.VBox:
    """``figure`` as a widget; its layout names no width."""
    drawn = LiveFigure(figure)
    drawn._config = {**drawn._config, "responsive": True}
    return w.VBox([_Rule(), drawn])
