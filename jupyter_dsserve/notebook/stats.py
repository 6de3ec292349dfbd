"""`StatsTable`: what versions did over hours and days, as a table and a data frame."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from jupyter_dsserve.bench.table import Bundle, Column, frame, table
from jupyter_dsserve.notebook.views import Shown
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import StatsHistory, StatsPoint

_AGE = r"(\d{1,6})([smhd])"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NUMBERS = (
    "requests",
    "errors",
    "requests/s",
    "tokens/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "first token p95 ms",
    "queued",
)
_SHOWN = 48  # rows; `to_frame` has all


@dataclass(frozen=True, slots=True, repr=False)
class StatsTable(Shown, StatsHistory):
    """Versions as they were, a row for each step; the newest rows are shown."""

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each version and step. Raises ImportError without pandas."""
        return frame(
            [
                {"deployment": each.deployment, "version": each.version, **asdict(point)}
                for each in self.series
                for point in each.points
            ]
        )

    def figure(self) -> Any:
        """A plotly figure: requests/s, latencies and errors over the time."""
        from jupyter_dsserve.notebook.past_figure import past_figure

        return past_figure(self, ())

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        if not self.series:
            return {"text/plain": "no version was loaded then", "text/html": "no version was loaded then"}
        rows = [(point.at, f"{s.deployment}@{s.version}", point) for s in self.series for point in s.points]
        newest = sorted(rows, key=lambda row: row[:2])[-_SHOWN:]
        told = [(_shown_at(at), version, *_cells(point)) for at, version, point in newest]
        return table(
            (
                Column("from", style="white-space:nowrap"),
                "version",
                *(Column(name, is_number=True) for name in _NUMBERS),
            ),
            told,
        )


def moment(text: str | float, now: float, param: str = "since") -> float:
    """``24h`` ago, a time such as ``2026-01-31T09:00`` (this machine's unless it says otherwise), or seconds since the
    epoch, as the latter. Raises `InvalidRequest` for anything else."""
    if not isinstance(text, str):
        return float(text)
    text = text.strip()
    if re.fullmatch(_AGE, text):
        return now - seconds_of(text, param)
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{param} is {text!r}: give an age such as 30m, 24h or 7d, or a time such as 2026-01-31T09:00", param=param
        ) from None


def seconds_of(text: str, param: str) -> int:
    """Of ``90s``, ``15m``, ``1h`` or ``7d``. Raises `InvalidRequest`."""
    found = re.fullmatch(_AGE, text.strip())
    if not found:
        raise InvalidRequest(f"{param} is {text!r}: give a number with its unit, such as 15m, 1h or 7d", param=param)
    return int(found[1]) * _UNITS[found[2]]


def _shown_at(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%a %d %H:%M")  # noqa: DTZ006  # the reader's own time


def _cells(point: StatsPoint) -> tuple[str, ...]:
    return (
        str(point.requests),
        str(point.errors),
        f"{point.requests_per_s:.2f}",
        f"{point.tokens_per_s:.1f}",
        *(
            "" if seconds is None else f"{1000 * seconds:.0f}"
            for seconds in (point.p50_s, point.p95_s, point.p99_s, point.first_token_p95_s)
        ),
        str(point.queued),
    )
