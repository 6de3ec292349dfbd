"""What happened to a deployment: the last events, and those of them that a plot marks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jupyter_dsserve.protocol.records import Event

KEPT = 200
_SAME_S = 0.2  # a step of a rollout and the change of the route that it makes are one thing

# What moves traffic: the kind of event, its word on the plot, and its colour (bad ends in Okabe and Ito's vermillion,
# good ones in their green).
_MARKED = {
    "activated": ("swap", "#009E73"),
    "route": ("route", "#888888"),
    "rollout_started": ("rollout", "#888888"),
    "rollout_step": ("step", "#56B4E9"),
    "rollout_paused": ("paused", "#888888"),
    "rollout_resumed": ("resumed", "#888888"),
    "rollout_promoted": ("promoted", "#009E73"),
    "rollout_rolled_back": ("rollback", "#D55E00"),
    "rolled_back": ("rollback", "#D55E00"),
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that a plot shows. ``at`` is seconds since the epoch."""

    at: float
    word: str
    text: str
    colour: str


@dataclass(slots=True)
class Past:
    """Keeps the last events of ``deployment``, and those that are of no deployment; each once, however often it is
    told."""

    deployment: str
    _events: dict[int, Event] = field(default_factory=dict)

    def add(self, events: Iterable[Event]) -> bool:
        """Whether one of them was new."""
        ours = {e.id: e for e in events if e.deployment in ("", self.deployment)}
        if not ours.keys() - self._events.keys():
            return False
        merged = self._events | ours
        self._events = {id: merged[id] for id in sorted(merged)[-KEPT:]}
        return True

    def newest(self, num: int) -> list[Event]:
        """The last ``num``, the newest first."""
        return list(self._events.values())[: -num - 1 : -1]

    def marks(self, since: float) -> list[Mark]:
        """What moved traffic since then, oldest first."""
        return marks_of(self._events.values(), since)


def marks_of(events: Iterable[Event], since: float = 0.0) -> list[Mark]:
    """Those of ``events`` after ``since`` that moved traffic, in their order."""
    found = [e for e in events if e.kind in _MARKED and e.at > since]
    told = [e.at for e in found if e.kind != "route"]
    return [
        Mark(e.at, _MARKED[e.kind][0], f"{in_words(e)}: {e.reason}", _MARKED[e.kind][1])
        for e in found
        if e.kind != "route" or not any(abs(e.at - at) < _SAME_S for at in told)
    ]


def in_words(event: Event) -> str:
    """``rollout step v2``, ``replica lost v1#0``."""
    return f"{event.kind.replace('_', ' ')} {event.replica.partition('@')[2] or event.version}".strip()
