"""The last minutes of each version's numbers, as arrays for a plot. Time is an argument: seconds since the epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jupyter_dsserve.protocol.records import VersionStats

WINDOW_S = 120.0
_RATE_S = 5.0  # over which requests per second are counted, as the gateway counts tokens

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Curves:
    """Of one version, each an array with a value for each second: ``ago_s`` is at most 0, latencies are in
    milliseconds, ``kv`` in percent and ``memory`` in MiB. Latencies are NaN while nothing was answered, and
    ``errors_per_s`` while there were none."""

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
    """Keeps what is younger than `WINDOW_S`, for each version of one deployment."""

    _stats: dict[str, deque[VersionStats]] = field(default_factory=dict)

    def add(self, stats: VersionStats) -> None:
        kept = self._stats.setdefault(stats.version, deque())
        kept.append(stats)
        while kept[0].at < stats.at - WINDOW_S:
            kept.popleft()

    def keep_only(self, versions: Collection[str]) -> None:
        """Forget all others."""
        for gone in self._stats.keys() - set(versions):
            del self._stats[gone]

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

    def curves(self, version: str, now: float) -> Curves:
        kept = [s for s in self._stats.get(version, ()) if s.at > now - WINDOW_S]

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


def _per_s(at: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> Floats:
    """How fast ``counts`` grew over the `_RATE_S` before each moment; 0 where they fell (the gateway began anew)."""
    before = np.searchsorted(at, at - _RATE_S)
    passed = at - at[before]
    grown = np.maximum(counts - counts[before], 0.0)
    return np.divide(grown, passed, out=np.zeros_like(grown), where=passed > 0).astype(np.float32)


def _ms(seconds: float | None) -> float:
    return float("nan") if seconds is None else 1000 * seconds
