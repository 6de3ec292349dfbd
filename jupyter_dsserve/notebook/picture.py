"""A plot as SVG, for pages where no widget shows: lines of versions over time, with marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from jupyter_dsserve.notebook.past import Mark
from jupyter_dsserve.notebook.views import colour_of, dash_of

_WIDTH, _HEIGHT, _LEFT = 720, 150, 50
_DASHES = {"solid": "", "dash": "8 4", "dot": "2 3", "dashdot": "8 3 2 3", "longdash": "14 5"}

# By name (v1, demo@v1): seconds before the end, at most 0, and the values, NaN where there is none.
Lines = Mapping[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]


@dataclass(frozen=True, slots=True)
class Picture:
    """Of ``span_s`` seconds that end at ``until`` (seconds since the epoch). ``unit`` stands beside the largest
    value."""

    caption: str
    unit: str
    span_s: float
    until: float
    height: int = _HEIGHT

    def svg(self, lines: Lines, marks: Sequence[Mark]) -> str:
        """Empty where there is nothing to draw."""
        finite = [y[np.isfinite(y)] for _, y in lines.values()]
        if not any(y.size for y in finite):
            return ""
        top = max(float(y.max()) for y in finite if y.size) or 1.0
        drawn = [_text(_LEFT - 4, 14, f"{_shown(top)}{self.unit}", "end"), _text(_LEFT - 4, self.height, "0", "end")]
        drawn.append(_text(_WIDTH, self.height + 14, self.caption, "end"))
        drawn.append(f'<path d="M{_LEFT} 4V{self.height}H{_WIDTH}" stroke="#888" fill="none"/>')
        for mark in marks:
            if -self.span_s <= mark.at - self.until <= 0:
                x = self._x(mark.at - self.until)
                line = f'<path d="M{x:.1f} 4V{self.height}" stroke="{mark.colour}" stroke-dasharray="2 3"/>'
                drawn.append(f"<g><title>{escape(mark.text)}</title>{line}</g>")
        for place, (name, (ago_s, values)) in enumerate(lines.items()):
            version = name.rpartition("@")[2]
            look = f'fill="none" stroke="{colour_of(version)}" stroke-dasharray="{_DASHES[dash_of(version)]}"'
            drawn.append(f'<path d="{self._path(ago_s, values, top)}" {look} stroke-width="2"/>')
            drawn.append(_text(_LEFT + 8 + 90 * place, self.height + 14, name, "start", colour_of(version)))
        size = f'width="{_WIDTH}" height="{self.height + 20}" viewBox="0 0 {_WIDTH} {self.height + 20}"'
        return f'<svg {size} style="max-width:100%;height:auto" font-size="11">{"".join(drawn)}</svg>'

    def _path(self, ago_s: npt.NDArray[np.floating], values: npt.NDArray[np.floating], top: float) -> str:
        """With gaps where there are no values; a lone one is a dash."""
        runs: list[list[str]] = [[]]
        for ago, value in zip(ago_s.tolist(), values.tolist(), strict=True):
            if np.isfinite(value):
                runs[-1].append(f"{self._x(ago):.1f} {self.height - (self.height - 10) * value / top:.1f}")
            else:
                runs.append([])
        return "".join(f"M{'L'.join(run)}{'h2' if len(run) == 1 else ''}" for run in runs if run)

    def _x(self, ago_s: float) -> float:
        return _WIDTH + (_WIDTH - _LEFT) * ago_s / self.span_s


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#888") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
