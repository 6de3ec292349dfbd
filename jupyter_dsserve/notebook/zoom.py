"""Which part of time the live plots show: the last minutes, or what somebody zoomed to. Time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jupyter_dsserve.notebook.series import WINDOW_S

# Of the time axis, in seconds ago, the older end first.
Range = tuple[float, float]

LIVE: Range = (-WINDOW_S, 0.0)
_SAME_S = 0.01  # pages give back what they were told, rounded


@dataclass(frozen=True, slots=True)
class Zoom:
    """``chosen``: from when until when, in seconds since the epoch; None while the plots show all of the last
    ``window_s`` seconds."""

    chosen: tuple[float, float] | None = None
    window_s: float = WINDOW_S

    @property
    def live(self) -> Range:
        return (-self.window_s, 0.0)

    def after(self, seen: Range, told: Range, at: float) -> Zoom:
        """What a person wants whose page shows ``seen``, where ``told`` was drawn at ``at`` (seconds since the epoch):
        the same as before, or something else if the two differ."""
        if is_same(seen, told):
            return self
        # A double click brings back what the page was made with, whatever it was told since.
        is_reset = is_same(seen, self.live) or is_same(seen, LIVE)
        return replace(self, chosen=None if is_reset else (at + min(seen), at + max(seen)))

    def range(self, now: float) -> Range:
        """It stays with its moment, and so moves to the left; out of the window it is given up."""
        if self.chosen is None or self.chosen[1] < now - self.window_s:
            return self.live
        return self.chosen[0] - now, self.chosen[1] - now


def is_same(one: Range, other: Range) -> bool:
    return all(abs(a - b) < _SAME_S for a, b in zip(one, other, strict=True))
