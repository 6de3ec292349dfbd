"""A panel where no widget shows (a notebook turned into HTML, a page without JavaScript): a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from jupyter_dsserve.notebook.past import Mark
from jupyter_dsserve.notebook.series import WINDOW_S, Floats, Series
from jupyter_dsserve.notebook.views import Deployment, colour_of, dash_of

_WIDTH, _HEIGHT, _LEFT = 720, 150, 50
_DASHES = {"solid": "", "dash": "8 4", "dot": "2 3", "dashdot": "8 3 2 3", "longdash": "14 5"}


def still(found: Deployment | None, series: Series, marks: Sequence[Mark], now: float) -> str:
    """As HTML: what `Deployment` shows, and below it the p95 of each version's answers with the marks, as SVG, if there
    were answers. ``now`` is seconds since the epoch."""
    if found is None:
        return "nothing is loaded yet"
    names = [v.version for v in found.versions]
    curves = {name: series.curves(name, now) for name in names}
    lines = {name: (c.ago_s, c.p95_ms) for name, c in curves.items() if np.isfinite(c.p95_ms).any()}
    return found._repr_mimebundle_()["text/html"] + (_picture(lines, marks, now) if lines else "")


def _picture(lines: dict[str, tuple[Floats, Floats]], marks: Sequence[Mark], now: float) -> str:
    top = max(float(np.nanmax(y)) for _, y in lines.values()) or 1.0
    drawn = [_text(_LEFT - 4, 14, f"{top:.0f} ms", "end"), _text(_LEFT - 4, _HEIGHT, "0", "end")]
    drawn.append(_text(_WIDTH, _HEIGHT + 14, f"p95 of the answers over {WINDOW_S:.0f} s, until now", "end"))
    drawn.append(f'<path d="M{_LEFT} 4V{_HEIGHT}H{_WIDTH}" stroke="#888" fill="none"/>')
    for mark in marks:
        x = _x(mark.at - now)
        drawn.append(
            f'<g><title>{escape(mark.text)}</title><path d="M{x:.1f} 4V{_HEIGHT}" stroke="{mark.colour}" '
            f'stroke-dasharray="2 3"/></g>'
        )
    for place, (name, (ago_s, ms)) in enumerate(lines.items()):
        look = f'stroke="{colour_of(name)}" stroke-dasharray="{_DASHES[dash_of(name)]}" stroke-width="2" fill="none"'
        drawn.append(f'<path d="{_path(ago_s, ms, top)}" {look}/>')
        drawn.append(_text(_LEFT + 8 + 60 * place, _HEIGHT + 14, name, "start", colour_of(name)))
    return f'<svg width="{_WIDTH}" height="{_HEIGHT + 20}" font-size="11">{"".join(drawn)}</svg>'


def _path(ago_s: Floats, ms: Floats, top: float) -> str:
    """With gaps where nothing was answered."""
    steps, is_down = [], False
    for ago, value in zip(ago_s.tolist(), ms.tolist(), strict=True):
        if np.isfinite(value):
            steps.append(f"{'L' if is_down else 'M'}{_x(ago):.1f} {_HEIGHT - (_HEIGHT - 10) * value / top:.1f}")
        is_down = bool(np.isfinite(value))
    return "".join(steps)


def _x(ago_s: float) -> float:
    return _WIDTH + (_WIDTH - _LEFT) * ago_s / WINDOW_S


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#888") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
