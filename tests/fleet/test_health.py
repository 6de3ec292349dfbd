"""What counts as dead: a table of what a worker does, and when its door closes and its process is ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from jupyter_dsserve.fleet.health import TICK_S, Health, Signs, Verdict, Watched, verdict

HEARTBEAT_S = 1.0
BUSY = 30.0  # seconds of steady work before the trouble begins

# What a worker shows at a second: whether it is heard, and its counter.
Life = Callable[[float], Signs]


def working(step_s: float, now: float) -> Signs:
    """Steady: heartbeats every second with a counter that moves every ``step_s``."""
    return Signs(now - now % HEARTBEAT_S, int((now - now % HEARTBEAT_S) / step_s), has_work=True)


def watched_over(life: Life, until: float) -> list[tuple[float, Verdict]]:
    """The changes of its health: when, and to what."""
    watched, changes, health = Watched(), [], Health.FINE
    for tick in range(int(until / TICK_S)):
        now = tick * TICK_S
        signs = life(now)
        watched = watched.after(signs)
        seen = verdict(watched, signs, now)
        if seen.health is not health:
            changes.append((now, seen))
            health = seen.health
    return changes


def at(life: Life, until: float = 600.0) -> list[tuple[Health, float]]:
    return [(seen.health, now) for now, seen in watched_over(life, until)]


def stopped(now: float) -> Signs:
    """SIGSTOP after half a minute of work."""
    return replace(working(0.1, min(now, BUSY)), is_stopped=now > BUSY)


def silent(now: float) -> Signs:
    """The same, where the system does not say that a process is stopped; or its interpreter is held."""
    return working(0.1, min(now, BUSY))


def silent_for_six_seconds(now: float) -> Signs:
    return working(0.1, BUSY if BUSY < now < BUSY + 6 else now)


def hung(now: float) -> Signs:
    """The engine's thread hangs in a call; the heartbeats go on."""
    return replace(working(0.1, now), num_steps=int(min(now, BUSY) / 0.1))


def idle(now: float) -> Signs:
    return replace(working(0.1, now), num_steps=7, has_work=False)


def large_chunk(now: float) -> Signs:
    """One step takes 15 s where others take a tenth: a large prompt on a busy machine."""
    return replace(working(0.1, now), num_steps=int((now if now < BUSY else max(BUSY, now - 15)) / 0.1))


def whole_prompt(now: float) -> Signs:
    """The same of two minutes, where a prompt is computed whole, however long it is."""
    steps = int((now if now < BUSY else max(BUSY, now - 120)) / 0.1)
    return replace(working(0.1, now), num_steps=steps, is_bounded=False)


def slow_model(now: float) -> Signs:
    """A step takes half a minute, from the start."""
    return working(30.0, now)


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (stopped, [(Health.DEAD, (3, 4))]),
        (silent, [(Health.SUSPECT, (3, 4)), (Health.DEAD, (15, 16))]),
        (silent_for_six_seconds, [(Health.SUSPECT, (3, 4)), (Health.FINE, (6, 7))]),
        (hung, [(Health.SUSPECT, (20, 22)), (Health.DEAD, (60, 63))]),
        (idle, []),
        (large_chunk, []),
        (whole_prompt, []),
        (slow_model, []),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_life_and_its_verdicts(life: Life, expected: list[tuple[Health, tuple[float, float]]]) -> None:
    found = at(life)
    assert [health for health, _ in found] == [health for health, _ in expected]
    for (_, now), (_, (least, most)) in zip(found, expected, strict=True):
        assert least <= now - BUSY <= most


def test_a_worker_that_has_shown_nothing_yet_has_ten_minutes_for_its_first_steps() -> None:
    found = at(lambda now: replace(working(0.1, now), num_steps=1), until=2000)
    assert [health for health, _ in found] == [Health.SUSPECT, Health.DEAD]
    assert [now for _, now in found] == pytest.approx([600, 1800], abs=5)


def test_a_gateway_that_was_itself_away_blames_nobody() -> None:
    watched = Watched().after(working(0.1, 5.0))
    later = Signs(5.0, 50, has_work=True)  # the machine slept for an hour: nothing was heard
    assert verdict(watched.after(later), later, 3605.0) == Verdict()


def test_a_reason_says_what_was_seen() -> None:
    assert watched_over(stopped, 60)[0][1].reason.startswith("the worker's process was stopped, silent for 3")
    assert watched_over(hung, 200)[-1][1].reason.startswith("the worker took no step for 60 s")
