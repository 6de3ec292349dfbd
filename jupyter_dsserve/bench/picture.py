"""A sweep as SVG, for pages where no widget shows, such as a saved notebook that was turned into HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

_PANE, _GAP, _TOP, _HEIGHT, _LEFT = 200, 60, 24, 150, 50


def sweep_svg(figure: Any) -> str:
    """What `sweep_figure` draws, pane by pane: its lines over the load, whose axis is logarithmic."""
    titles = [each.text for each in figure.layout.annotations[:3]]
    panes = [[line for line in figure.data if line.xaxis in (axis, None)] for axis in ("x", "x2", "x3")]
    slos = [[shape for shape in figure.layout.shapes if shape.yref == axis] for axis in ("y", "y2", "y3")]
    words = [[a.text for a in figure.layout.annotations[3:] if a.yref == axis] for axis in ("y", "y2", "y3")]
    drawn = [
        _pane(i, title, lines, [(shape.y0, text) for shape, text in zip(shapes, texts, strict=True)])
        for i, (title, lines, shapes, texts) in enumerate(zip(titles, panes, slos, words, strict=True))
    ]
    width, height = _LEFT + 3 * (_PANE + _GAP), _TOP + _HEIGHT + 40
    caption = _text(_LEFT, height - 4, f"{figure.layout.title.text} ({figure.layout.xaxis.title.text})", "start")
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="11">{"".join(drawn)}{caption}</svg>'


def _pane(index: int, title: str, lines: Sequence[Any], slos: Sequence[tuple[float, str]]) -> str:
    """``slos``: heights of lines across, and their words."""
    left = _LEFT + index * (_PANE + _GAP)
    loads = sorted({x for line in lines for x in line.x})
    top = max([y for line in lines for y in line.y if y is not None] + [y for y, _ in slos], default=0.0) or 1.0
    low, high = math.log(loads[0]), math.log(loads[-1])

    def across(load: float) -> float:
        return left + _PANE * ((math.log(load) - low) / (high - low) if high > low else 0.5)

    bottom = _TOP + _HEIGHT
    drawn = [
        f'<path d="M{left} {_TOP}V{bottom}H{left + _PANE}" stroke="#888" fill="none"/>',
        _text(left + _PANE / 2, _TOP - 8, title, "middle"),
        _text(left - 4, _TOP + 8, f"{top:.0f}" if top >= 10 else f"{top:.2g}", "end"),
        _text(left - 4, bottom, "0", "end"),
        *(_text(across(load), bottom + 14, f"{load:g}", "middle") for load in loads),
    ]
    for y, text in slos:
        at = bottom - _HEIGHT * y / top
        drawn.append(f'<path d="M{left} {at:.1f}h{_PANE}" stroke="#888" stroke-dasharray="6 4"/>')
        drawn.append(_text(left + 4, round(at + (12 if at < _TOP + 12 else -4), 1), text, "start"))
    for line in lines:
        points = [
            f"{across(x):.1f} {bottom - _HEIGHT * y / top:.1f}"
            for x, y in zip(line.x, line.y, strict=True)
            if y is not None
        ]
        dots = ' stroke-dasharray="2 3"' if line.line.dash == "dot" else ""
        look = f'stroke="{line.line.color}" stroke-width="2" fill="none"{dots}'
        drawn.append(f'<path d="M{"L".join(points)}h.1" {look}/>' if points else "")
    return "".join(drawn)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="#888">{escape(text)}</text>'
