"""Which part of time the live plots show: the last minutes, or what somebody zoomed to. Time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

from jupyter_dsserve.notebook.series import WINDOW_S

# Of the time axis, in seconds ago, the older end first.
Range = tuple[float, float]

LIVE: Range = (-WINDOW_S, 0.0)
_SAME_S = 0.01  # pages give back what they were told, rounded


@dataclass(frozen=True, slots=True)
class Zoom:
    """``chosen``: from when until when, in seconds since the epoch; None while the plots show all there is."""

    chosen: tuple[float, float] | None = None

    def after(self, seen: Range, told: Range, at: float) -> Zoom:
        """What a person wants whose page shows ``seen``, where ``told`` was drawn at ``at`` (seconds since the epoch):
        the same as before, or something else if the two differ."""
        if _is_same(seen, told):
            return self
        return Zoom() if _is_same(seen, LIVE) else Zoom((at + min(seen), at + max(seen)))

    def range(self, now: float) -> Range:
        """It stays with its moment, and so moves to the left; out of the window it is given up."""
        if self.chosen is None or self.chosen[1] < now - WINDOW_S:
            return LIVE
        return self.chosen[0] - now, self.chosen[1] - now


def _is_same(one: Range, other: Range) -> bool:
    return all(abs(a - b) < _SAME_S for a, b in zip(one, other, strict=True))
