"""A panel where no widget shows (a notebook turned into HTML, a page without JavaScript): a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jupyter_dsserve.notebook.past import Mark
from jupyter_dsserve.notebook.picture import Picture
from jupyter_dsserve.notebook.series import Series
from jupyter_dsserve.notebook.views import Deployment


def still(
    found: Deployment | None, where: str, series: Series, marks: Sequence[Mark], now: float, window_s: float
) -> str:
    """As HTML: what `Deployment` shows, and below it the p95 of each version's answers with the marks, as SVG, if there
    were answers; ``where`` says why where there is no deployment. ``now`` is seconds since the epoch, and ``window_s``
    how many before it are shown."""
    if found is None:
        return escape(where)
    curves = {v.version: series.curves(v.version, now, window_s) for v in found.versions}
    picture = Picture(f"p95 of the answers over {window_s / 60:.0f} min, until now", " ms", window_s, now)
    return found._repr_mimebundle_()["text/html"] + picture.svg(
        {name: (c.ago_s, c.p95_ms) for name, c in curves.items()}, marks
    )
