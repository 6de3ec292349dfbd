"""A circuit breaker for one replica: closed → open → half-open. Time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

_WINDOW = 100
# A share of fewer answers says little.
_MIN_ANSWERS = 20


class Outcome(Enum):
    """How a request ended, as far as its replica is to blame. OTHER: by the caller, or by their deadline."""

    OK = "ok"
    FAULT = "fault"
    OTHER = "other"


class Door(str, Enum):
    """CLOSED lets all requests through (it is the circuit that is closed), OPEN none, HALF_OPEN one at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


_CLOSED = Door.CLOSED  # every request passes here, and a member of an enumeration is found slowly


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """It opens after ``max_failures`` in a row, or if ``failure_share`` of the last 100 failed (of at least 20), for
    ``open_s`` seconds; then requests go through one by one, and after ``num_successes`` of them it is closed again. 0
    for either of the first two switches that one off."""

    max_failures: int = 5
    failure_share: float = 0.5
    open_s: float = 30.0
    num_successes: int = 2


class Breaker:
    """`begin` each request that goes through, and `end` it with the number that `begin` gave.

    The number is the generation the request began in: each change of state begins another, and an answer that comes
    late, from an older one, says nothing about the replica now.
    """

    def __init__(self, settings: BreakerSettings) -> None:
        self.settings = settings
        self.door = Door.CLOSED
        self._generation = 0
        self._open_until = 0.0
        self._in_a_row = 0  # failures while closed, successes while half-open
        self._last: deque[bool] = deque(maxlen=_WINDOW)  # of the last answers: whether it was a failure
        self._is_trying = False  # half-open, and one is through

    def allows(self, now: float) -> bool:
        """Whether a request may go through now."""
        if self.door is _CLOSED:
            return True
        return now >= self._open_until if self.door is Door.OPEN else not self._is_trying

    def open_s(self, now: float) -> float:
        """Seconds until it lets something through again; 0 if it does."""
        return max(0.0, self._open_until - now) if self.door is Door.OPEN else 0.0

    def begin(self, now: float) -> int:
        """A request goes through; `allows` said that it may."""
        if self.door is not _CLOSED:
            if self.door is Door.OPEN and now >= self._open_until:
                self._become(Door.HALF_OPEN)
            self._is_trying = self.door is Door.HALF_OPEN
        return self._generation

    def end(self, generation: int, outcome: Outcome, now: float) -> None:
        """A request has ended that began in ``generation``."""
        if generation != self._generation or self.door is Door.OPEN:
            return
        if self.door is Door.HALF_OPEN:
            self._is_trying = False
            if outcome is Outcome.FAULT:
                self._open(now)
            elif outcome is Outcome.OK:
                self._in_a_row += 1
                if self._in_a_row >= self.settings.num_successes:
                    self._become(Door.CLOSED)
        elif outcome is not Outcome.OTHER:
            is_fault = outcome is Outcome.FAULT
            self._last.append(is_fault)
            self._in_a_row = self._in_a_row + 1 if is_fault else 0
            if is_fault and self._has_failed_too_often():
                self._open(now)

    def _has_failed_too_often(self) -> bool:
        settings, num = self.settings, len(self._last)
        if settings.max_failures and self._in_a_row >= settings.max_failures:
            return True
        return bool(settings.failure_share) and num >= _MIN_ANSWERS and sum(self._last) >= settings.failure_share * num

    def _open(self, now: float) -> None:
        self._open_until = now + self.settings.open_s
        self._become(Door.OPEN)

    def _become(self, door: Door) -> None:
        self.door = door
        self._generation += 1
        self._in_a_row = 0
        self._is_trying = False
        self._last.clear()
