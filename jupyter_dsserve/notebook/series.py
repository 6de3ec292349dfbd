"""The last hour of each version's numbers, as arrays for a plot: minutes first, then live seconds. Time is an argument:
seconds since the epoch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from jupyter_dsserve.bench.table import frame
from jupyter_dsserve.protocol.records import StatsHistory, StatsPoint, VersionStats

WINDOW_S = 120.0  # of live seconds
WINDOWS_S = (WINDOW_S, 900.0, 3600.0)  # that a plot may show
_SLACK_S = 2.0  # seconds come a little late: so much of a window without one is not yet a minute's
_RATE_S = 5.0  # over which requests per second are counted, as the gateway counts tokens

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Curves:
    """Of one version, each an array with a value for each second, and before those in steps, a minute each: ``ago_s``
    is at most 0, latencies are in milliseconds, ``kv`` in percent and ``memory`` in MiB. Latencies are NaN while
    nothing was answered, and ``errors_per_s`` while there were none."""

    ago_s: Floats
    p50_ms: Floats
    p95_ms: Floats
    p99_ms: Floats
    first_token_ms: Floats
    tokens_per_s: Floats
    requests_per_s: Floats
    errors_per_s: Floats
    in_flight: Floats
    queued: Floats
    kv: Floats
    memory: Floats


@dataclass(slots=True)
class Series:
    """Keeps what is younger than `WINDOW_S`, for each version of one deployment, and the minutes that it was told."""

    _stats: dict[str, deque[VersionStats]] = field(default_factory=dict)
    _minutes: dict[str, list[_Minute]] = field(default_factory=dict)

    def add(self, stats: VersionStats) -> None:
        kept = self._stats.setdefault(stats.version, deque())
        kept.append(stats)
        while kept[0].at < stats.at - WINDOW_S:
            kept.popleft()

    def fill(self, history: StatsHistory) -> None:
        """What was before the live seconds, in place of what was told earlier."""
        self._minutes = {
            each.version: [
                _Minute(point, min(point.at + history.step_s, history.until), history.step_s) for point in each.points
            ]
            for each in history.series
        }

    def keep_only(self, versions: Collection[str]) -> None:
        """Forget all others."""
        for known in (self._stats, self._minutes):
            for gone in known.keys() - set(versions):
                del known[gone]

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row for each version and live second; ``at`` is seconds since the epoch. Raises
        ImportError without pandas."""
        return frame([asdict(stats) for kept in self._stats.values() for stats in kept])

    def latest(self, version: str) -> VersionStats | None:
        kept = self._stats.get(version)
        return kept[-1] if kept else None

    def requests_per_s(self, version: str) -> float:
        """Of the last seconds; 0 if nothing is known."""
        kept = self._stats.get(version)
        if not kept:
            return 0.0
        last = [s for s in kept if s.at >= kept[-1].at - _RATE_S]
        return float(_per_s(np.array([s.at for s in last]), np.array([float(s.requests) for s in last]))[-1])

    def curves(self, version: str, now: float, window_s: float = WINDOW_S) -> Curves:
        """The seconds of the window that are live, and before them its minutes: each moment is told once."""
        since = now - window_s
        kept = [s for s in self._stats.get(version, ()) if s.at > since]
        live = _live(kept, now)
        first = kept[0].at if kept else math.inf
        before = [m for m in self._minutes.get(version, ()) if m.until > since and m.point.at < first]
        if not before or first < since + _SLACK_S:
            return live
        if kept and before[-1].goes_on_at(first):
            # What was counted before the first second nobody knows: it goes on at the minute's rate.
            live.requests_per_s[0] = before[-1].point.requests_per_s
        past = _past(before, since, first, now)
        return Curves(*(np.concatenate([getattr(past, f.name), getattr(live, f.name)]) for f in fields(Curves)))


@dataclass(frozen=True, slots=True)
class _Minute:
    """``until`` is the end of the time it tells of, seconds since the epoch."""

    point: StatsPoint
    until: float
    step_s: int

    def goes_on_at(self, at: float) -> bool:
        """Whether what was told of ``at`` comes right after it, or else the version was not loaded meanwhile."""
        return at - self.until < 0.6 * self.step_s


def _live(kept: Sequence[VersionStats], now: float) -> Curves:
    # float32 is enough for seconds ago, and not for seconds since the epoch; plotly sends it as it is.
    def each(value: Callable[[VersionStats], float]) -> Floats:
        return np.array([value(s) for s in kept], np.float32)

    at = np.array([s.at for s in kept])
    errors_per_s = _per_s(at, np.array([float(s.errors) for s in kept]))
    return Curves(
        ago_s=each(lambda s: s.at - now),
        p50_ms=each(lambda s: _ms(s.p50_s)),
        p95_ms=each(lambda s: _ms(s.p95_s)),
        p99_ms=each(lambda s: _ms(s.p99_s)),
        first_token_ms=each(lambda s: _ms(s.first_token_p95_s)),
        tokens_per_s=each(lambda s: s.tokens_per_s),
        requests_per_s=_per_s(at, np.array([float(s.requests) for s in kept])),
        errors_per_s=np.where(errors_per_s > 0, errors_per_s, np.float32(np.nan)),
        in_flight=each(lambda s: s.in_flight),
        queued=each(lambda s: s.queued),
        kv=each(lambda s: 100 * s.kv_used),
        memory=each(lambda s: s.device_bytes / 2**20),
    )


def _past(minutes: Sequence[_Minute], since: float, first: float, now: float) -> Curves:
    """A minute has its value from its begin to its end, so that no slope says what was in between; and a point in its
    middle too, for a mouse to find. With a gap wherever the version was not loaded for a minute or more. It begins at
    ``since`` at the earliest, and ends at ``first``, where the live seconds begin (infinite without any)."""
    told: list[tuple[float, StatsPoint | None, bool]] = []  # when, what, and whether it is a middle
    for minute, after in zip(minutes, [*(m.point.at for m in minutes[1:]), first], strict=True):
        point, begin = minute.point, max(minute.point.at, since)
        goes_on = minute.goes_on_at(after)
        end = after if goes_on else minute.until
        told += [(begin, point, False), ((begin + end) / 2, point, True), (end, point, False)]
        if not goes_on and after < math.inf:
            told.append((end, None, False))

    def each(value: Callable[[StatsPoint], float]) -> Floats:
        return np.array([value(point) if point else np.nan for _, point, _ in told], np.float32)

    errors_per_s = each(lambda p: p.requests_per_s * p.errors / p.requests if p.errors and p.requests else np.nan)
    return Curves(
        ago_s=np.array([at - now for at, _, _ in told], np.float32),
        p50_ms=each(lambda p: _ms(p.p50_s)),
        p95_ms=each(lambda p: _ms(p.p95_s)),
        p99_ms=each(lambda p: _ms(p.p99_s)),
        first_token_ms=each(lambda p: _ms(p.first_token_p95_s)),
        tokens_per_s=each(lambda p: p.tokens_per_s),
        requests_per_s=each(lambda p: p.requests_per_s),
        errors_per_s=np.where([is_middle for _, _, is_middle in told], errors_per_s, np.float32(np.nan)),
        in_flight=each(lambda p: p.in_flight),
        queued=each(lambda p: p.queued),
        kv=each(lambda p: 100 * p.kv_used),
        memory=each(lambda p: p.device_bytes / 2**20),
    )


def _per_s(at: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> Floats:
    """How fast ``counts`` grew over the `_RATE_S` before each moment; 0 where they fell (the gateway began anew)."""
    before = np.searchsorted(at, at - _RATE_S)
    passed = at - at[before]
    grown = np.maximum(counts - counts[before], 0.0)
    return np.divide(grown, passed, out=np.zeros_like(grown), where=passed > 0).astype(np.float32)


def _ms(seconds: float | None) -> float:
    return float("nan") if seconds is None else 1000 * seconds
