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
_MAX_SUMS = 50_000  # points of all series together
_USUAL_POINTS = 240

# (upper bound in seconds, how many), rising, without empty ones; the last bound may be infinite.
Counts = tuple[tuple[float, int], ...]
_BOUNDS = (*LATENCY_S, math.inf)
_PLACES = {bound: place for place, bound in enumerate(_BOUNDS)}


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
        """As it is written down, beside its name and time: JSON, with the places of bounds, which are shorter."""
        found = asdict(self)
        for name in ("latency_s", "first_token_s"):
            found[name] = [[_PLACES[bound], count] for bound, count in found[name]]
        return {name: value for name, value in found.items() if name not in ("deployment", "version", "at")}

    @staticmethod
    def read(deployment: str, version: str, at: int, row: Mapping[str, Any]) -> Minute:
        """Of what `row` gave; or gave once, with the bounds themselves, of which None is the infinite one."""
        given = dict(row)
        for name in ("latency_s", "first_token_s"):
            given[name] = tuple((_bound(told), count) for told, count in given[name])
        return Minute(deployment, version, at, **(given | {"most": Gauges(**given["most"])}))

    def plus(self, other: Minute) -> Minute:
        """Both together, from where this one begins."""
        return _together([self, other], self.at)


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


@dataclass(slots=True)
class Sums:
    """Minutes of a time, added up in steps as they are read; a step begins at a multiple of ``step_s`` since the epoch.

    A minute that the time cuts is in it as a whole."""

    since: float
    until: float
    step_s: int
    _sums: dict[tuple[str, str, int], Minute] = field(default_factory=dict)

    def add(self, minutes: Iterable[Minute]) -> None:
        """Those that lie in the time. Raises `InvalidRequest` if they make too many points."""
        several: dict[tuple[str, str, int], list[Minute]] = defaultdict(list)
        for each in minutes:
            if self.since - MINUTE_S < each.at < self.until:
                several[each.deployment, each.version, each.at // self.step_s * self.step_s].append(each)
        for key, found in several.items():
            before = self._sums.get(key)
            self._sums[key] = _together([before, *found] if before else found, key[2])
        if len(self._sums) > _MAX_SUMS:
            raise InvalidRequest(
                f"step is {self.step_s}, which makes over {_MAX_SUMS} points of so many versions: name a deployment "
                "and a version, or give a longer step, or a shorter time",
                param="step",
            )

    def history(self, now: float) -> StatsHistory:
        """A series for each version, with a point for each step in which there was something. ``now`` is seconds since
        the epoch: what is still to come of a step does not count in its rates."""
        series: dict[tuple[str, str], list[StatsPoint]] = defaultdict(list)
        for deployment, version, at in sorted(self._sums):
            point = _point(self._sums[deployment, version, at], self._seconds(at, now))
            series[deployment, version].append(point)
        return StatsHistory(self.since, self.until, self.step_s, [StatsSeries(*key, series[key]) for key in series])

    def _seconds(self, at: int, now: float) -> float:
        """How much of the step at ``at`` lies in the time, in whole minutes, and has passed."""
        first, last = self.since // MINUTE_S * MINUTE_S, math.ceil(self.until / MINUTE_S) * MINUTE_S
        return max(1.0, min(at + self.step_s, last, now) - max(at, first))


def not_read(before: Sequence[Minute], after: Sequence[Minute]) -> list[Minute]:
    """Of a recorder's `current` rows before and after what is written was read: those that were not in it. A minute
    that has ended meanwhile was written too late."""
    return [row for row in before if not after or row.at < after[0].at] + [*after]


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


def _together(minutes: Sequence[Minute], at: int) -> Minute:
    """Of one version."""
    most = Gauges()
    for each in minutes:
        most = most.most(each.most)
    return replace(
        minutes[0],
        at=at,
        requests=sum(m.requests for m in minutes),
        errors=sum(m.errors for m in minutes),
        prompt_tokens=sum(m.prompt_tokens for m in minutes),
        tokens=sum(m.tokens for m in minutes),
        latency_s=_added(m.latency_s for m in minutes),
        first_token_s=_added(m.first_token_s for m in minutes),
        most=most,
    )


def _point(whole: Minute, seconds: float) -> StatsPoint:
    return StatsPoint(
        at=float(whole.at),
        requests=whole.requests,
        errors=whole.errors,
        requests_per_s=whole.requests / seconds,
        prompt_tokens=whole.prompt_tokens,
        tokens=whole.tokens,
        tokens_per_s=whole.tokens / seconds,
        p50_s=percentile_of(whole.latency_s, 0.50),
        p95_s=percentile_of(whole.latency_s, 0.95),
        p99_s=percentile_of(whole.latency_s, 0.99),
        first_token_p95_s=percentile_of(whole.first_token_s, 0.95),
        in_flight=whole.most.in_flight,
        queued=whole.most.queued,
        kv_used=whole.most.kv_used,
        device_bytes=whole.most.device_bytes,
        replicas=whole.most.replicas,
    )


def _bound(told: float | None) -> float:
    """A place is an int; no bound is."""
    return math.inf if told is None else _BOUNDS[told] if isinstance(told, int) else told


def _since(now: Histogram, before: Sequence[int]) -> Counts:
    then = before or [0] * len(now.counts)
    bounds = (*now.bounds, math.inf)
    return tuple((b, n - t) for b, n, t in zip(bounds, now.counts, then, strict=True) if n > t)


def _added(several: Iterable[Counts]) -> Counts:
    added: dict[float, int] = defaultdict(int)
    for counts in several:
        for bound, count in counts:
            added[bound] += count
    return tuple(sorted(added.items()))
