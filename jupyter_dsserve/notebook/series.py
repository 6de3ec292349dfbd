"""The last minutes of each version's numbers, as arrays for a plot. Time is an argument: seconds since the epoch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jupyter_dsserve.protocol.records import VersionStats

WINDOW_S = 120.0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of one version: ``ago_s`` is at most 0; ``p50_ms`` and ``p95_ms`` are NaN while nothing was answered."""

    ago_s: Floats
    p50_ms: Floats
    p95_ms: Floats


@dataclass(slots=True)
class Series:
    """Keeps what is younger than `WINDOW_S`, for each version of one deployment."""

    _stats: dict[str, deque[VersionStats]] = field(default_factory=dict)

    def add(self, stats: VersionStats) -> None:
        kept = self._stats.setdefault(stats.version, deque())
        kept.append(stats)
        while kept[0].at < stats.at - WINDOW_S:
            kept.popleft()

    def forget(self, version: str) -> None:
        self._stats.pop(version, None)

    def latest(self, version: str) -> VersionStats | None:
        kept = self._stats.get(version)
        return kept[-1] if kept else None

    def latencies(self, version: str, now: float) -> Latencies:
        # float32 is enough for seconds ago, and not for seconds since the epoch; plotly sends it as it is.
        kept = [s for s in self._stats.get(version, ()) if s.at > now - WINDOW_S]
        return Latencies(
            np.array([s.at - now for s in kept], np.float32),
            np.array([_ms(s.p50_s) for s in kept], np.float32),
            np.array([_ms(s.p95_s) for s in kept], np.float32),
        )


def _ms(seconds: float | None) -> float:
    return float("nan") if seconds is None else 1000 * seconds
