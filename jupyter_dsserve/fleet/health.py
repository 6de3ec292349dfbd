"""Whether a worker is alive: from its heartbeats and its step counter, looked at every `TICK_S`. Time is an argument.

What is to be told apart:

    sign                                        door closed after     ended after
    no heartbeat, and the process is stopped    `SILENT_S`            `SILENT_S`
    no heartbeat                                `SILENT_S`            `MAX_SILENT_S`
    heartbeats, work on it, no step             `standing_limit_s`    three times that

Heartbeats come from the worker's event loop and not from the thread that computes, so a long model step or a large
chunk of a prompt does not delay them; what holds the whole interpreter for seconds (an import, a storm of page faults)
does, and is forgiven when it ends. A step may take long on a slow machine: only one that takes far longer than those
seen before on this worker is a hang.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

TICK_S = 0.5
HEARTBEAT_S = 1.0  # between a worker's
SILENT_S = 3.0
MAX_SILENT_S = 15.0
# A counter may stand for so long in any case, and for so many times the longest that was seen.
_MIN_STANDING_S = 20.0
_STANDING_RATIO = 10.0
# Before a worker has shown how long its steps take, and where one step may be of any size.
_UNKNOWN_STANDING_S = 600.0
_ENOUGH_STEPS = 10


class Health(Enum):
    """FINE: takes requests. SUSPECT: takes none until it is FINE again. DEAD: to be ended and replaced."""

    FINE = "fine"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Signs:
    """What is seen of a worker at a tick. ``heard_at``: when it last said anything, in monotonic seconds.
    ``num_steps``: its counter. ``has_work``: its engine has requests. ``is_stopped``: its process is held by
    SIGSTOP or a debugger. ``is_bounded``: its steps are of one size at most, such as chunks of prompts."""

    heard_at: float
    num_steps: int
    has_work: bool
    is_stopped: bool = False
    is_bounded: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    health: Health = Health.FINE
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is remembered of a worker between ticks.

    ``num_silent`` ticks passed since it was heard: silence is counted in ticks too, because a gateway that was itself
    stopped (a laptop asleep) has heard nobody, and nobody is to blame. ``standing_s``: how long the step counter stands
    although there is work; ``longest_s``: the longest that this ever ended well.
    """

    heard_at: float = 0.0
    num_silent: int = 0
    num_steps: int = -1
    num_moves: int = 0
    standing_s: float = 0.0
    longest_s: float = 0.0

    def after(self, signs: Signs) -> Watched:
        """What is remembered after another tick."""
        num_silent = self.num_silent + 1 if signs.heard_at == self.heard_at else 0
        if signs.num_steps != self.num_steps:
            longest_s, num_moves = max(self.longest_s, self.standing_s), self.num_moves + 1
            return Watched(signs.heard_at, num_silent, signs.num_steps, num_moves, 0.0, longest_s)
        # Silence says nothing about steps: the counter comes with a heartbeat, every second.
        is_heard = num_silent * TICK_S < 2 * HEARTBEAT_S
        standing_s = self.standing_s + TICK_S * is_heard if signs.has_work else 0.0
        return Watched(signs.heard_at, num_silent, signs.num_steps, self.num_moves, standing_s, self.longest_s)

    def standing_limit_s(self, is_bounded: bool) -> float:
        """How long the counter may stand before the door is closed."""
        is_known = is_bounded and self.num_moves >= _ENOUGH_STEPS
        return max(_MIN_STANDING_S if is_known else _UNKNOWN_STANDING_S, _STANDING_RATIO * self.longest_s)


def verdict(watched: Watched, signs: Signs, now: float) -> Verdict:
    """How a worker is, after the tick whose ``signs`` made it ``watched``."""
    silent_s = min(now - signs.heard_at, watched.num_silent * TICK_S)
    if silent_s >= SILENT_S and signs.is_stopped:
        return Verdict(Health.DEAD, f"the worker's process was stopped, silent for {silent_s:.1f} s, and was ended")
    if silent_s >= MAX_SILENT_S:
        return Verdict(Health.DEAD, f"the worker was silent for {silent_s:.0f} s and was given up")
    if silent_s >= SILENT_S:
        return Verdict(Health.SUSPECT, f"silent for {silent_s:.1f} s")
    limit_s = watched.standing_limit_s(signs.is_bounded)
    if watched.standing_s >= 3 * limit_s:
        reason = f"the worker took no step for {watched.standing_s:.0f} s with work on it, and was ended"
        return Verdict(Health.DEAD, reason)
    if watched.standing_s >= limit_s:
        return Verdict(Health.SUSPECT, f"no step for {watched.standing_s:.0f} s with work on it")
    return Verdict()
