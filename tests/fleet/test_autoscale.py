"""How many workers a version should have: a pure plan over what was seen. Time is an argument."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jupyter_dsserve.fleet.autoscale import AutoscaleSettings, Sample, ScaleState, plan
from jupyter_dsserve.protocol.errors import InvalidRequest

SETTINGS = AutoscaleSettings(min=0, max=5, target_in_flight=10, target_queue=4, idle_s=100, stable_s=60)
START = 1000.0


def after(seconds: int, in_flight: int, queued: int = 0, goal: int = 1, changed_s: float = 0.0) -> tuple[int, float]:
    """The plan after so many seconds of one and the same load, seen once a second; and now."""
    state = ScaleState(goal, START - changed_s, START)
    for second in range(seconds):
        state = state.seen(Sample(START + second, in_flight, queued, second), SETTINGS.stable_s)
    now = START + seconds - 1
    return plan(SETTINGS, state, now), now


@pytest.mark.parametrize(
    ("in_flight", "queued", "goal", "planned"),
    [
        (10, 0, 1, 1),  # on its target
        (11, 0, 1, 1),  # within tolerance
        (12, 0, 1, 2),
        (35, 0, 1, 4),  # up at once, as far as is needed
        (500, 0, 1, 5),  # to the most
        (3, 8, 1, 2),  # by those that wait
        (3, 17, 2, 5),
        (35, 0, 4, 4),
    ],
)
def test_it_grows_at_once_to_what_is_asked(in_flight: int, queued: int, goal: int, planned: int) -> None:
    assert after(3, in_flight, queued, goal)[0] == planned


def test_a_burst_that_is_over_does_not_make_it_grow() -> None:
    state = ScaleState(1, START, START)
    for second, in_flight in enumerate((0, 0, 14)):
        state = state.seen(Sample(START + second, in_flight, 0, second), 60)
    assert plan(SETTINGS, state, START + 2) == 1


def test_it_shrinks_by_one_when_a_whole_window_needed_less() -> None:
    assert after(59, 5, goal=4)[0] == 4
    assert after(61, 5, goal=4)[0] == 3
    assert after(61, 5, goal=4, changed_s=-30)[0] == 4, "it has changed within the window"


def test_it_shrinks_although_it_is_looked_at_a_little_late_each_time() -> None:
    state = ScaleState(4, START - 100, START)
    for tick in range(80):
        now = START + 1.003 * tick
        state = state.seen(Sample(now, 5, 0, tick), SETTINGS.stable_s)
        if plan(SETTINGS, state, now) == 3:
            break
    assert 60 <= now - START < 62
    assert len(state.samples) < 65


def test_one_busy_moment_in_the_window_keeps_it_as_it_is() -> None:
    state = ScaleState(4, START - 100, START)
    for second in range(61):
        state = state.seen(Sample(START + second, 35 if second == 20 else 1, 0, second), 60)
    assert plan(SETTINGS, state, START + 60) == 4
    for second in range(61, 82):
        state = state.seen(Sample(START + second, 1, 0, second), 60)
    assert plan(SETTINGS, state, START + 81) == 3


def test_it_rests_when_nobody_has_asked_for_long_and_may_be_zero() -> None:
    assert after(100, 0, goal=1)[0] == 1, "every second a request came and was answered"
    idle = ScaleState(3, START - 500, START, (Sample(START + 99.5, 0, 0, 7),))
    assert plan(SETTINGS, idle, START + 99.9) == 3
    assert plan(SETTINGS, idle, START + 100) == 0
    assert plan(replace(SETTINGS, min=1), idle, START + 100) == 3
    woken = replace(idle, changed_s=START + 50)
    assert plan(SETTINGS, woken, START + 100) == 3, "one that was just woken is not put to rest"


def test_only_a_request_wakes_what_rests() -> None:
    assert plan(SETTINGS, ScaleState(0, START, START, (Sample(START, 0, 0, 0),)), START + 1) == 0


def test_it_keeps_between_its_limits() -> None:
    limits = replace(SETTINGS, min=2, max=3)
    seen = (Sample(START, 0, 0, 0), Sample(START + 70, 0, 0, 0))
    for goal, planned in ((1, 2), (2, 2), (3, 2), (5, 2)):
        assert plan(limits, ScaleState(goal, START - 100, START, seen), START + 70) == planned
    assert plan(limits, ScaleState(5, START - 1, START, (Sample(START, 0, 0, 0),)), START) == 3


def test_a_most_below_the_least_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min is 3 and max is 2"):
        AutoscaleSettings(min=3, max=2)
