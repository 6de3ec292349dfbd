"""How long a load may take. Time is an argument."""

from __future__ import annotations

import math

import pytest

from jupyter_dsserve.fleet.loading import LoadWatch, load_limit_s
from jupyter_dsserve.fleet.need import UNLIMITED, Need
from jupyter_dsserve.protocol.config import AdmissionSettings, Priority

SETTINGS = AdmissionSettings()


@pytest.mark.parametrize(("priority", "limit_s"), [("high", 30), ("medium", 60), ("low", 120)])
def test_a_load_has_the_time_of_its_class_and_more_for_bytes_and_building(priority: Priority, limit_s: float) -> None:
    assert load_limit_s(Need(1), priority, SETTINGS) == limit_s
    assert load_limit_s(Need(1, read_bytes=500_000_000), priority, SETTINGS) == limit_s + 25
    assert load_limit_s(Need(1, builds=True), priority, SETTINGS) == limit_s + SETTINGS.build_s


def test_a_load_of_which_nobody_knows_how_much_there_is_has_no_end_but_must_get_on() -> None:
    assert load_limit_s(Need(1, read_bytes=UNLIMITED), "high", SETTINGS) == math.inf
    load = LoadWatch(Need(1, read_bytes=UNLIMITED), "high", SETTINGS, started_s=1000.0)
    load.is_quiet("weights", 0.05, 1000.0)
    load.worked(100.0, 1500.0)
    assert load.overdue(1559.0) == ""
    assert load.overdue(1561.0).startswith("the load made no progress for 61 s")


def watch(**more: float) -> LoadWatch:
    return LoadWatch(Need(1), "low", AdmissionSettings(**more), started_s=1000.0)


def test_a_load_that_gets_on_is_over_when_its_time_is() -> None:
    load = watch()
    for second in range(121):
        assert not load.is_quiet("weights", second / 200, 1000.0 + second)
        assert load.overdue(1000.0 + second) == ""
    assert "took over 120 s" in load.overdue(1120.1)
    assert "it stands at weights, 60%" in load.overdue(1120.1)


def test_a_load_that_says_nothing_and_does_nothing_is_given_up() -> None:
    load = watch()
    assert not load.is_quiet("weights", 0.5, 1010.0)
    for second in (11, 40, 70):
        assert load.is_quiet("weights", 0.5, 1000.0 + second)
        load.worked(0.4, 1000.0 + second)  # a stopped process uses no time
        assert load.overdue(1000.0 + second) == ""
    assert load.overdue(1071.0).startswith("the load made no progress for 61 s")


def test_a_load_that_computes_gets_on_although_it_says_nothing() -> None:
    load = watch()
    load.is_quiet("importing torch", 0.0, 1000.0)
    for second in range(1, 119):
        assert load.is_quiet("importing torch", 0.0, 1000.0 + second)
        load.worked(float(second), 1000.0 + second)
        assert load.overdue(1000.0 + second) == ""


def test_a_build_gets_on_although_each_compiler_takes_its_work_with_it_when_it_ends() -> None:
    load = watch(timeout_low_s=600.0)
    load.is_quiet("deepspeed", 0.8, 1000.0)
    for second in range(1, 400):
        load.worked(5.0 + second % 40, 1000.0 + second)  # the second compiler never did more than the first
        assert load.overdue(1000.0 + second) == ""
    load.worked(5.0, 1400.0)
    assert load.overdue(1470.0).startswith("the load made no progress for 71 s")
