"""How much is let in: a token bucket for calls, a budget for retries. Time is an argument."""

from __future__ import annotations

import math


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

    def give_back(self, num: float) -> None:
        """Of what was taken; less than 0 takes more, into debt if need be."""
        self._tokens = min(self.burst, self._tokens + num)


def num_retries_left(num_retrying: int, num_in_flight: int, share: float, at_least: int) -> int:
    """How many more requests may be repeated now: a failing fleet must not be asked twice as much."""
    return max(0, math.ceil(max(at_least, share * num_in_flight) - num_retrying))
