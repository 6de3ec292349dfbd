"""How much is let in: a token bucket for calls, a moving window for tokens, a budget for retries. Time is an argument.

Buckets and windows of the library `limits` read the clock themselves, and take back nothing of what was reserved; its
sliding window counter lets two and a half limits through in the first two minutes, where this window lets two.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


class TokenBucket:
    """``rate`` tokens flow in each second, up to ``burst``; each call takes some. It begins full."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        """``burst`` 0 is as many as flow in within a second, at least one."""
        self.rate, self.burst = rate, burst or max(1, int(rate))
        self._tokens, self._at = float(self.burst), now

    def take(self, now: float, num: float = 1.0) -> float:
        """Take ``num`` tokens: 0; or if there are fewer, none is taken: the seconds until there are as many."""
        self._tokens = min(self.burst, self._tokens + self.rate * (now - self._at))
        self._at = now
        if self._tokens >= num:
            self._tokens -= num
            return 0.0
        return (num - self._tokens) / self.rate

    def give_back(self, num: float = 1.0) -> None:
        """What was taken for nothing."""
        self._tokens = min(self.burst, self._tokens + num)


@dataclass(slots=True, eq=False)
class Taken:
    """So many at a time; counted until it ``is_over``."""

    at: float
    num: int
    is_over: bool = False


class MovingWindow:
    """At most ``most`` in any ``window_s`` seconds, whenever they begin."""

    def __init__(self, most: int, window_s: float) -> None:
        self.most = most
        self._window_s = window_s
        self._taken: deque[Taken] = deque()
        self._sum = 0

    def wait_s(self, now: float, num: int) -> float:
        """Seconds until there is room for ``num``, which is no more than ``most``; 0 is now."""
        while self._taken and self._taken[0].at <= now - self._window_s:
            over = self._taken.popleft()
            over.is_over = True
            self._sum -= over.num
        missing = self._sum + num - self.most
        if missing <= 0:
            return 0.0
        for taken in self._taken:
            missing -= taken.num
            if missing <= 0:
                return taken.at + self._window_s - now
        return self._window_s

    def take(self, now: float, num: int) -> Taken:
        """Count ``num`` from now on, whether there is room or not."""
        taken = Taken(now, num)
        self._taken.append(taken)
        self._sum += num
        return taken

    def settle(self, taken: Taken, num: int) -> None:
        """It was ``num`` in the end: fewer make room at once, more are missing until the window has passed."""
        if not taken.is_over:
            self._sum += num - taken.num
            taken.num = num


def num_retries_left(num_retrying: int, num_in_flight: int, share: float, at_least: int) -> int:
    """How many more requests may be repeated now: a failing fleet must not be asked twice as much."""
    return max(0, math.ceil(max(at_least, share * num_in_flight) - num_retrying))
