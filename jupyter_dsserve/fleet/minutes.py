"""What every version did in each minute, kept for days: `Minute`s, and series of points made of them. Pure.

A percentile of an hour cannot be made from those of its minutes. So a minute keeps counts of latencies, in buckets
whose upper bounds rise by a fifth each; counts of several minutes are added, and a percentile is read off the sum,
linearly between the bounds of its bucket: it is never more than a fifth off. What is shown as it stood at a moment (in
flight, queued, KV cache, memory) is the most that a look each second saw.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jupyter_dsserve.fleet.stats import LATENCY_GROWTH, LATENCY_S, Histogram, Window
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import StatsHistory, StatsPoint, StatsSeries

MINUTE_S = 60
MAX_POINTS = 2000  # of a series
_USUAL_POINTS = 240

# (upper bound in seconds, how many), rising, without empty ones; the last bound may be infinite.
Counts = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Gauges:
    """A version at a moment: requests on its workers and in line for them, how full the fullest KV cache is (0 to 1),
    the memory of its workers on their device, and how many of them are READY."""

    in_flight: int = 0
    queued: int = 0
    kv_used: float = 0.0
    device_bytes: int = 0
    replicas: int = 0

    def most(self, other: Gauges) -> Gauges:
        return Gauges(
            max(self.in_flight, other.in_flight),
            max(self.queued, other.queued),
            max(self.kv_used, other.kv_used),
            max(self.device_bytes, other.device_bytes),
            max(self.replicas, other.replicas),
        )


@dataclass(frozen=True, slots=True)
class Minute:
    """A version from ``at`` (seconds since the epoch) on, for a minute or for several that were added up. Latencies are
    those of good answers, ``tokens`` of answers, ``most`` the most that was seen at a moment."""

    deployment: str
    version: str
    at: int
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    latency_s: Counts = ()
    first_token_s: Counts = ()
    most: Gauges = field(default_factory=Gauges)

    def row(self) -> dict[str, Any]:
        """As it is written down, beside its name and time: JSON, which knows no infinity."""
        found = asdict(self)
        for name in ("latency_s", "first_token_s"):
            found[name] = [[None if math.isinf(bound) else bound, count] for bound, count in found[name]]
        return {name: value for name, value in found.items() if name not in ("deployment", "version", "at")}

    @staticmethod
    def read(deployment: str, version: str, at: int, row: Mapping[str, Any]) -> Minute:
        """Of what `row` gave."""
        given = dict(row)
        for name in ("latency_s", "first_token_s"):
            given[name] = tuple((math.inf if bound is None else bound, count) for bound, count in given[name])
        return Minute(deployment, version, at, **(given | {"most": Gauges(**given["most"])}))

    def plus(self, other: Minute) -> Minute:
        """Both together, from where this one begins."""
        return replace(
            self,
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            tokens=self.tokens + other.tokens,
            latency_s=_sum(self.latency_s, other.latency_s),
            first_token_s=_sum(self.first_token_s, other.first_token_s),
            most=self.most.most(other.most),
        )


@dataclass(frozen=True, slots=True)
class _Counted:
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    latency_s: tuple[int, ...] = ()
    first_token_s: tuple[int, ...] = ()

    @staticmethod
    def of(window: Window) -> _Counted:
        totals = window.totals
        return _Counted(
            window.requests,
            window.errors,
            totals.prompt_tokens,
            totals.tokens,
            tuple(totals.fine_latency_s.counts),
            tuple(totals.fine_first_token_s.counts),
        )


@dataclass(slots=True)
class _Open:
    """A version's minute that is not over. ``told`` is what its window had counted when the last one was."""

    window: Window
    told: _Counted
    most: Gauges = field(default_factory=Gauges)
    was_seen: bool = False


@dataclass(slots=True)
class Recorder:
    """Told of every version each second; gives a minute's rows once it is over."""

    _minute: int = 0
    _open: dict[tuple[str, str, int], _Open] = field(default_factory=dict)  # a name may be given anew: by window too

    def tick(self, at: float, seen: Iterable[tuple[str, str, Gauges, Window]]) -> list[Minute]:
        """``seen`` are deployment, version, how it stands and what it has counted. ``at`` is seconds since the epoch;
        the rows are those of the minute before, if it has just ended."""
        minute = int(at // MINUTE_S) * MINUTE_S
        ended = self.close() if self._minute and minute != self._minute else []
        self._minute = minute
        for deployment, version, gauges, window in seen:
            found = self._open.setdefault((deployment, version, id(window)), _Open(window, _Counted()))
            found.most, found.was_seen = found.most.most(gauges), True
        return ended

    def close(self) -> list[Minute]:
        """The rows of the minute so far; what comes after is counted anew."""
        rows = self.current()
        self._open = {
            key: _Open(found.window, _Counted.of(found.window)) for key, found in self._open.items() if found.was_seen
        }
        return rows

    def current(self) -> list[Minute]:
        """The rows of the minute so far. Versions that were not loaded and answered nothing have none."""
        rows = [self._row(key[0], key[1], found) for key, found in self._open.items()]
        return [row for row in rows if row.requests or row.most.replicas or row.most.queued]

    def _row(self, deployment: str, version: str, found: _Open) -> Minute:
        now, told, totals = _Counted.of(found.window), found.told, found.window.totals
        return Minute(
            deployment,
            version,
            self._minute,
            now.requests - told.requests,
            now.errors - told.errors,
            now.prompt_tokens - told.prompt_tokens,
            now.tokens - told.tokens,
            _since(totals.fine_latency_s, told.latency_s),
            _since(totals.fine_first_token_s, told.first_token_s),
            found.most,
        )


def step_of(since: float, until: float, wanted_s: int | None) -> int:
    """Seconds between the points of a series: ``wanted_s``, or such that they are some hundreds at most.

    Raises `InvalidRequest` for a step that is no whole number of minutes, or for too many points.
    """
    if until <= since:
        raise InvalidRequest(f"from is {since:.0f} and to is {until:.0f}: give a to that is later", param="to")
    if wanted_s is None:
        return MINUTE_S * max(1, math.ceil((until - since) / MINUTE_S / _USUAL_POINTS))
    if wanted_s < MINUTE_S or wanted_s % MINUTE_S:
        raise InvalidRequest(f"step is {wanted_s}: give seconds that make whole minutes, such as 60", param="step")
    if (num := math.ceil((until - since) / wanted_s)) > MAX_POINTS:
        raise InvalidRequest(
            f"step is {wanted_s}, which makes {num} points, over the limit of {MAX_POINTS}: give a longer one, or a "
            "shorter time",
            param="step",
        )
    return wanted_s


def history_of(minutes: Iterable[Minute], since: float, until: float, step_s: int) -> StatsHistory:
    """The minutes as series, one for each version, with a point for each step in which there was something. A step
    begins at a multiple of ``step_s`` since the epoch."""
    sums: dict[tuple[str, str], dict[int, list[Minute]]] = defaultdict(lambda: defaultdict(list))
    for each in minutes:
        sums[each.deployment, each.version][each.at // step_s * step_s].append(each)
    series = [
        StatsSeries(deployment, version, [_point(steps[at], at, step_s) for at in sorted(steps)])
        for (deployment, version), steps in sorted(sums.items())
    ]
    return StatsHistory(since, until, step_s, series)


def percentile_of(counts: Counts, share: float) -> float | None:
    """Below which ``share`` of the values lie, linearly within its bucket; None without values. What is beyond the last
    finite bound is told as that bound, as Prometheus' histogram_quantile does."""
    rank = share * sum(count for _, count in counts)
    below = 0
    for bound, count in counts:
        if below + count >= rank and count:
            if math.isinf(bound):
                return _LAST
            lower = bound / LATENCY_GROWTH
            return lower + (bound - lower) * (rank - below) / count
        below += count
    return None


_LAST = LATENCY_S[-1]


def _point(minutes: Sequence[Minute], at: int, step_s: int) -> StatsPoint:
    latency_s, first_token_s = _added(m.latency_s for m in minutes), _added(m.first_token_s for m in minutes)
    most = Gauges()
    for each in minutes:
        most = most.most(each.most)
    requests, tokens = sum(m.requests for m in minutes), sum(m.tokens for m in minutes)
    return StatsPoint(
        at=float(at),
        requests=requests,
        errors=sum(m.errors for m in minutes),
        requests_per_s=requests / step_s,
        prompt_tokens=sum(m.prompt_tokens for m in minutes),
        tokens=tokens,
        tokens_per_s=tokens / step_s,
        p50_s=percentile_of(latency_s, 0.50),
        p95_s=percentile_of(latency_s, 0.95),
        p99_s=percentile_of(latency_s, 0.99),
        first_token_p95_s=percentile_of(first_token_s, 0.95),
        in_flight=most.in_flight,
        queued=most.queued,
        kv_used=most.kv_used,
        device_bytes=most.device_bytes,
        replicas=most.replicas,
    )


def _since(now: Histogram, before: Sequence[int]) -> Counts:
    then = before or [0] * len(now.counts)
    bounds = (*now.bounds, math.inf)
    return tuple((b, n - t) for b, n, t in zip(bounds, now.counts, then, strict=True) if n > t)


def _sum(one: Counts, other: Counts) -> Counts:
    return _added([one, other])


def _added(several: Iterable[Counts]) -> Counts:
    added: dict[float, int] = defaultdict(int)
    for counts in several:
        for bound, count in counts:
            added[bound] += count
    return tuple(sorted(added.items()))
