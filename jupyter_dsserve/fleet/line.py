"""The line of a deployment: requests that wait for a replica, by priority and age, and not too many of them."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from jupyter_dsserve.protocol.errors import DSServeError, TooManyRequests

# A step of priority is worth so many seconds of waiting, as in the engine's own line: so nobody waits for ever.
AGE_S = 10.0

T = TypeVar("T")


@dataclass(order=True, slots=True)
class Place:
    """Of one request in line; a smaller ``key`` goes first."""

    key: tuple[float, int]
    is_shed: bool = field(default=False, compare=False)
    news: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


class Queue:
    """The order alone, without waiting. Each version has its own line; the bound is on all of them together."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Place]] = {}
        self._num_entered = 0
        self.num_waiting = 0

    def enter(self, version: str, priority: int, since: float, max_waiting: int) -> Place:
        """Stand in line. If it is full, the last of all is shed: `TooManyRequests` if that would be this one."""
        self._num_entered += 1
        place = Place((since + AGE_S * priority, self._num_entered))
        if self.num_waiting >= max_waiting:
            last = max((line[-1] for line in self._lines.values()), default=None)
            if last is None or place > last:
                raise TooManyRequests(_full(max_waiting))
            last.is_shed = True
            last.news.set()
            self._remove(last)
        insort(self._lines.setdefault(version, []), place)
        self.num_waiting += 1
        return place

    def leave(self, version: str, place: Place) -> None:
        """Whether it was served or not. One that was shed has left already."""
        if place in self._lines.get(version, ()):
            self._remove_from(version, place)

    def first(self, version: str) -> Place | None:
        line = self._lines.get(version)
        return line[0] if line else None

    def num_waiting_for(self, version: str) -> int:
        return len(self._lines.get(version, ()))

    def _remove(self, place: Place) -> None:
        self._remove_from(next(version for version, line in self._lines.items() if line[-1] is place), place)

    def _remove_from(self, version: str, place: Place) -> None:
        line = self._lines[version]
        line.remove(place)
        if not line:
            del self._lines[version]
        self.num_waiting -= 1


class Line(Queue):
    """Waits in that order: the first looks for its replica whenever there is news, and then wakes the next."""

    async def wait(
        self,
        version: str,
        priority: int,
        since: float,
        max_waiting: int,
        look: Callable[[], T | None],
        until: float,
        late: Callable[[], DSServeError],
    ) -> T:
        """What ``look`` finds once it is this request's turn; what it raises ends the wait.

        ``since`` and ``until`` are monotonic seconds: at ``until`` the wait ends with the error that ``late`` makes.
        Raises `TooManyRequests` if the line is full of others that go first.
        """
        loop = asyncio.get_running_loop()
        place = self.enter(version, priority, since, max_waiting)
        try:
            while True:
                if place.is_shed:
                    raise TooManyRequests(_full(max_waiting))
                if self.first(version) is place and (found := look()) is not None:
                    return found
                left = until - time.monotonic()
                if left <= 0:
                    raise late()
                # Not asyncio.wait_for: before Python 3.12 it can swallow the cancellation of who leaves just now.
                timer = loop.call_later(min(left, _LOOK_AGAIN_S), place.news.set)
                try:
                    await place.news.wait()
                finally:
                    timer.cancel()
                place.news.clear()
        finally:
            self.leave(version, place)
            self.wake(version)

    def wake(self, version: str) -> None:
        """There may be a replica for the first in line, or nothing to wait for any more."""
        if place := self.first(version):
            place.news.set()


# What changes with time alone (a breaker that may be tried again) wakes nobody.
_LOOK_AGAIN_S = 1.0


def _full(max_waiting: int) -> str:
    return (
        f"{max_waiting} requests wait in line already, which is max_queue of this deployment's policy: ask again later "
        "or with a higher priority (a lower number), or raise max_queue"
    )
