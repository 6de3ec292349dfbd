"""How many workers a version should have by what is asked of it: a pure `plan`, and the `Autoscaler` that follows it.

Up at once, by what is asked now, and down by one when the most that was asked within a whole window would do with
less: after Kubernetes' HorizontalPodAutoscaler, its stabilisation window and its tolerance.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest

log = logging.getLogger(__name__)

TICK_S = 1.0
UP_S = 3.0  # over which what is asked now is averaged: a burst shorter than a load is no reason for one
_TOLERANCE = 0.1  # a worker that is so much over its target does not need another beside it


@dataclass(frozen=True, slots=True)
class AutoscaleSettings:
    """From ``min`` to ``max`` workers, so many that each has at most ``target_in_flight`` requests on it, of which at
    most ``target_queue`` wait (0: that does not count). With ``min`` 0 a version that nobody has asked for ``idle_s``
    seconds is put to rest: its workers end, and the next request loads it again. It shrinks by one worker when
    ``stable_s`` seconds have needed less."""

    min: int
    max: int
    target_in_flight: float = 16.0
    target_queue: float = 0.0
    idle_s: float = 600.0
    stable_s: float = 60.0

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise InvalidRequest(f"min is {self.min} and max is {self.max}: give a max of at least that", param="max")

    @staticmethod
    def of(version: Version) -> AutoscaleSettings | None:
        """A version's own; None if it is not scaled automatically."""
        found: Mapping[str, Any] | None = version.settings.get("autoscale")
        return AutoscaleSettings(**found) if found else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sample:
    """What is asked of a version at a moment: requests on its workers, those of them that wait there, and all that it
    was ever asked."""

    at_s: float
    in_flight: int
    queued: int
    num_requests: int


@dataclass(frozen=True, slots=True)
class ScaleState:
    """How many workers a version is to have (0: it rests), when that changed last, when it was asked last, and what was
    seen since; more than ``most`` never fit into memory. Seconds are monotonic."""

    goal: int
    changed_s: float
    busy_s: float
    samples: tuple[Sample, ...] = ()
    most: int = 64

    def seen(self, sample: Sample, keep_s: float) -> ScaleState:
        """With one more sample. Those older than ``keep_s`` are forgotten, but for the last of them: what is kept must
        span that time, however seldom it is looked."""
        last = self.samples[-1] if self.samples else sample
        is_busy = sample.in_flight > 0 or sample.num_requests > last.num_requests
        samples = (*self.samples, sample)
        num_old = sum(s.at_s <= sample.at_s - keep_s for s in samples)
        return replace(self, samples=samples[max(0, num_old - 1) :], busy_s=sample.at_s if is_busy else self.busy_s)

    def changed(self, goal: int, now: float) -> ScaleState:
        return self if goal == self.goal else replace(self, goal=goal, changed_s=now)


def plan(settings: AutoscaleSettings, state: ScaleState, now: float) -> int:
    """How many workers the version should have from now on; 0 puts it to rest, from which only a request wakes it."""
    if state.goal == 0 or not state.samples:
        return state.goal
    least = max(1, settings.min)
    goal = min(max(state.goal, least), settings.max)
    recent = [s for s in state.samples if s.at_s > now - UP_S]
    if recent and (asked := _needed(settings, *_mean(recent))) > goal:
        return min(asked, settings.max)
    if settings.min == 0 and now - max(state.busy_s, state.changed_s) >= settings.idle_s:
        return 0
    is_settled = now - max(state.changed_s, state.samples[0].at_s) >= settings.stable_s
    most = max(_needed(settings, s.in_flight, s.queued) for s in state.samples)
    return max(goal - 1, least) if is_settled and most < goal else goal


def _mean(samples: list[Sample]) -> tuple[float, float]:
    return sum(s.in_flight for s in samples) / len(samples), sum(s.queued for s in samples) / len(samples)


def _needed(settings: AutoscaleSettings, in_flight: float, queued: float) -> int:
    """Workers that keep to both targets."""
    load = in_flight / settings.target_in_flight
    if settings.target_queue:
        load = max(load, queued / settings.target_queue)
    return max(1, math.ceil(load - _TOLERANCE))


class Autoscaler:
    """Looks at every version each second and calls ``resize(version, goal, why)`` when its plan says so."""

    def __init__(self, resize: Callable[[Version, int, str], Awaitable[None]]) -> None:
        self._resize = resize
        self._states: dict[Version, ScaleState] = {}

    def forget(self, version: Version) -> None:
        """Begin anew with it: its settings have changed."""
        self._states.pop(version, None)

    async def run(self, versions: Callable[[], Iterable[Version]]) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            known = list(versions())
            self._states = {version: state for version, state in self._states.items() if version in known}
            for version in known:
                settings = AutoscaleSettings.of(version)
                if settings and version.is_wanted and not version.failure:
                    try:
                        await self._look(version, settings, time.monotonic())
                    except Exception:  # the others must not suffer for one
                        log.exception("%s could not be scaled", version.id)

    async def _look(self, version: Version, settings: AutoscaleSettings, now: float) -> None:
        state = self._states.get(version) or ScaleState(version.num_wanted, now, now)
        sample = Sample(now, version.in_flight, version.num_queued, version.window.requests + version.in_flight)
        state = state.changed(version.num_wanted, now).seen(sample, max(settings.stable_s, UP_S))
        if not version.is_ready:  # nobody can ask it yet
            state = replace(state, busy_s=now)
        self._states[version] = state
        goal = min(plan(settings, state, now), state.most)
        if goal == state.goal:
            return
        idle_s = now - state.busy_s
        why = f"{sample.in_flight} requests run, {sample.queued} wait" if goal else f"nobody asked for {idle_s:.0f} s"
        try:
            await self._resize(version, goal, why)
        except Conflict as refusal:
            self._states[version] = replace(state, most=state.goal)
            log.warning("%s stays at %d workers: %s", version.id, state.goal, refusal.message)
