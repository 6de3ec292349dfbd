"""Latencies of a version over the last seconds. Time is an argument."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW_S = 30.0
RATE_S = 5.0  # over which tokens per second are counted


# Seconds; of OpenTelemetry's conventions for generative AI, and some below: a small model's tokens are quick.
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

# Seconds, each a fifth over the one before, to a thousand: fine enough to read percentiles off.
LATENCY_GROWTH = 1.2
LATENCY_S = tuple(0.001 * LATENCY_GROWTH**i for i in range(77))


class Histogram:
    """How many values were at most each of ``bounds``, which rise; and the sum of all."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def counts(self) -> Sequence[int]:
        """How many lie in each bucket, the last one without a bound."""
        return self._counts

    @property
    def buckets(self) -> list[tuple[float, int]]:
        """(bound, values up to it), the last bound infinite."""
        total, found = 0, []
        for bound, count in zip((*self.bounds, math.inf), self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found


@dataclass(frozen=True, slots=True)
class Served:
    """One ended request: when it ended, how long it took, and its first token (None if there was none). ``queued_s`` is
    how long it waited in line; ``prompt_tokens`` and ``num_tokens`` those of its usage."""

    at: float
    latency_s: float
    first_token_s: float | None
    num_tokens: int
    is_error: bool
    queued_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class Totals:
    """Of all requests since the start; only good ones have histograms of their times.

    ``good_s`` is how long good ones took together, ``computed_s`` that without their time in line, ``failed_s`` how
    long the others took; the last of all ended at ``last_at`` (monotonic seconds)."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    good_s: float = 0.0
    computed_s: float = 0.0
    failed_s: float = 0.0
    last_at: float | None = None
    queued_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))
    first_token_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))
    per_token_s: Histogram = field(default_factory=lambda: Histogram(PER_TOKEN_S))
    # for `minutes`
    fine_latency_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_S))
    fine_first_token_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_S))

    def add(self, served: Served) -> None:
        self.prompt_tokens += served.prompt_tokens
        self.cached_tokens += served.cached_tokens
        self.tokens += served.num_tokens
        self.queued_s.observe(served.queued_s)
        self.last_at = served.at
        if served.is_error:
            self.failed_s += served.latency_s
        else:
            self.good_s += served.latency_s
            self.computed_s += served.latency_s - served.queued_s
        if not served.is_error:
            self.fine_latency_s.observe(served.latency_s)
        if served.first_token_s is not None and not served.is_error:
            self.fine_first_token_s.observe(served.first_token_s)
            self.first_token_s.observe(served.first_token_s)
            if served.num_tokens > 1:
                self.per_token_s.observe((served.latency_s - served.first_token_s) / (served.num_tokens - 1))


@dataclass(slots=True)
class Window:
    """The requests that ended within the last `WINDOW_S` seconds, and counts since the start."""

    requests: int = 0
    errors: int = 0
    totals: Totals = field(default_factory=Totals)
    _served: deque[Served] = field(default_factory=deque)
    _tokens: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, served: Served) -> None:
        self.requests += 1
        self.errors += served.is_error
        self.totals.add(served)
        self._served.append(served)
        self._forget_before(served.at)

    def add_tokens(self, at: float, num_tokens: int) -> None:
        """Tokens count when they come, not when their request ends: a long answer would look like a burst."""
        tokens = self._tokens
        tokens.append((at, num_tokens))
        while tokens[0][0] < at - RATE_S:  # here, and without a call: every token passes
            tokens.popleft()

    def good(self, now: float) -> list[Served]:
        """The window's answers that were not errors: an error's latency says nothing about a good answer's."""
        self._forget_before(now)
        return [s for s in self._served if not s.is_error]

    def tokens_per_s(self, now: float) -> float:
        self._forget_before(now)
        return sum(n for _, n in self._tokens) / RATE_S

    def _forget_before(self, now: float) -> None:
        """On every addition too: nobody may ever ask."""
        while self._served and self._served[0].at < now - WINDOW_S:
            self._served.popleft()
        while self._tokens and self._tokens[0][0] < now - RATE_S:
            self._tokens.popleft()


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of ``values``; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
