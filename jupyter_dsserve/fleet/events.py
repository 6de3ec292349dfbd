"""What happened, newest last: hands out ids, remembers the last events, tells those who listen."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jupyter_dsserve.protocol.records import Event, VersionStats

_REMEMBERED = 1000
# A reader that is this far behind is gone or stuck; its queue must not grow.
_MAX_BEHIND = 1000

Item = Event | VersionStats


@dataclass(frozen=True, slots=True)
class Asked:
    """Which events: those of one ``deployment`` (empty: of all), with ids after ``since`` and before ``before``, that
    happened at ``first`` or later and at ``last`` or earlier (seconds since the epoch); at most ``limit``: the first
    of them if there is a ``since``, or else the last."""

    deployment: str = ""
    since: int | None = None
    before: int | None = None
    first: float = 0.0
    last: float = math.inf
    limit: int = 1000

    def of(self, events: Iterable[Event]) -> list[Event]:
        """Those of them, oldest first. No event is there twice."""
        found = sorted((event for event in events if self._holds(event)), key=lambda event: event.id)
        return found[-self.limit :] if self.since is None else found[: self.limit]

    def _holds(self, event: Event) -> bool:
        is_there = (self.since or 0) < event.id < (math.inf if self.before is None else self.before)
        return is_there and self.deployment in ("", event.deployment) and self.first <= event.at <= self.last


class Events:
    """``keep`` is called with each new event, to write it down; ``past`` is what was written before, oldest first."""

    def __init__(self, keep: Callable[[Event], object], past: Iterable[Event] = ()) -> None:
        self._keep = keep
        self._recent = deque(past, maxlen=_REMEMBERED)
        self.counts: Counter[tuple[str, str, str]] = Counter()  # since the start: kind, deployment, version
        self._last_id = self._recent[-1].id if self._recent else 0
        self._listeners: set[asyncio.Queue[Item | None]] = set()

    def record(
        self, at: float, kind: str, *, deployment: str = "", version: str = "", replica: str = "", reason: str = ""
    ) -> Event:
        self._last_id += 1
        self.counts[kind, deployment, version] += 1
        event = Event(self._last_id, at, kind, deployment, version, replica, reason)
        self._recent.append(event)
        self._keep(event)
        self.publish(event)
        return event

    def publish(self, item: Item) -> None:
        """Tell the listeners; one that is too far behind is cut off and has to come back."""
        for queue in list(self._listeners):
            if queue.qsize() < _MAX_BEHIND:
                queue.put_nowait(item)
            else:
                self._listeners.discard(queue)
                queue.put_nowait(None)

    def close(self) -> None:
        """End every listener's stream."""
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()

    @property
    def last_id(self) -> int:
        """Of the newest event; 0 before the first."""
        return self._last_id

    def since(self, last_id: int) -> list[Event]:
        """The remembered events after ``last_id``."""
        return [e for e in self._recent if e.id > last_id]

    @contextmanager
    def listen(self) -> Iterator[asyncio.Queue[Item | None]]:
        """A queue of what comes from now on; None in it means that it was cut off."""
        queue: asyncio.Queue[Item | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    @property
    def has_listeners(self) -> bool:
        return bool(self._listeners)
