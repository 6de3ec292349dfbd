"""Latencies of a version over the last seconds. Time is an argument."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW_S = 30.0
RATE_S = 5.0  # over which tokens per second are counted


@dataclass(frozen=True, slots=True)
class Served:
    """One ended request: when it ended, how long it took, and its first token (None if there was none)."""

    at: float
    latency_s: float
    first_token_s: float | None
    num_tokens: int
    is_error: bool


@dataclass(slots=True)
class Window:
    """The requests that ended within the last `WINDOW_S` seconds, and counts since the start."""

    requests: int = 0
    errors: int = 0
    _served: deque[Served] = field(default_factory=deque)
    _tokens: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, served: Served) -> None:
        self.requests += 1
        self.errors += served.is_error
        self._served.append(served)
        self._forget_before(served.at)

    def add_tokens(self, at: float, num_tokens: int) -> None:
        """Tokens count when they come, not when their request ends: a long answer would look like a burst."""
        self._tokens.append((at, num_tokens))
        self._forget_before(at)

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
