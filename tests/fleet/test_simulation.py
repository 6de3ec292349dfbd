"""The short form of the simulation; the long one's table stands in docs/gray-release.md."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import TABLE
from tests.fleet.simulation import HEAD, SCENARIOS, Result, Scenario, simulate

NUM_RUNS = 50
# What the long form finds in nine of ten runs and more.
FOUND = (
    "latency +20 %, 100 requests/s",
    "latency +50 %",
    "latency +30 %, steps of 5 s and 20 requests",
    "errors 1 % → 5 %, 100 requests/s",
    "errors 1 % → 20 %",
)


@cache
def simulated(scenario: Scenario) -> Result:
    """Two tests look at the same runs."""
    return simulate(scenario, NUM_RUNS, seed=1)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> list[str]:
    """Rows for the end of the run, where they are printed."""
    return request.config.stash.setdefault(TABLE, [f"rollouts, {NUM_RUNS} runs each", *HEAD.splitlines()])


def test_the_page_shows_every_scenario() -> None:
    page = (Path(__file__).parents[2] / "docs/gray-release.md").read_text()
    assert HEAD in page
    assert [s.name for s in SCENARIOS if f"\n| {s.name} |" not in page] == []


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if not s.is_worse], ids=lambda s: s.name)
def test_a_candidate_that_is_no_worse_is_hardly_ever_taken_back(scenario: Scenario, table: list[str]) -> None:
    result = simulated(replace(scenario, max_s=300))
    table.append(result.row())
    assert result.rolled_back <= 1 / NUM_RUNS
    if scenario.name.startswith("thin"):
        assert result.promoted == 0  # too little to say anything
    else:
        assert result.promoted > 0.85  # within five minutes; the others still wait


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in FOUND], ids=lambda s: s.name)
def test_a_candidate_that_is_clearly_worse_is_taken_back(scenario: Scenario, table: list[str]) -> None:
    result = simulated(scenario)
    table.append(result.row())
    assert result.rolled_back > 0.9


@pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS if s.is_worse and s.errors[1] > s.errors[0]], ids=lambda s: s.name
)
def test_a_candidate_that_fails_more_often_is_not_promoted(scenario: Scenario) -> None:
    assert simulated(scenario).promoted <= 1 / NUM_RUNS
