"""The short form of the simulation; the long one's table stands in docs/gray-release.md."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fleet.simulation import HEAD, SCENARIOS, Scenario, simulate

NUM_RUNS = 50
# What the long form finds in nine of ten runs and more.
FOUND = ("latency +20 %, 100 requests/s", "latency +50 %", "errors 1 % → 5 %, 100 requests/s", "errors 1 % → 20 %")


@pytest.fixture(scope="module", autouse=True)
def head() -> None:
    sys.stdout.write(f"\n{HEAD}\n")  # pytest -s shows the table


def test_the_page_shows_every_scenario() -> None:
    page = (Path(__file__).parents[2] / "docs/gray-release.md").read_text()
    assert HEAD in page
    assert [s.name for s in SCENARIOS if f"\n| {s.name} |" not in page] == []


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if not s.is_worse], ids=lambda s: s.name)
def test_a_candidate_that_is_no_worse_is_hardly_ever_taken_back(scenario: Scenario) -> None:
    result = simulate(replace(scenario, max_s=300), NUM_RUNS, seed=1)
    sys.stdout.write(f"{result.row()}\n")
    assert result.rolled_back <= 1 / NUM_RUNS
    if scenario.name.startswith("thin"):
        assert result.promoted == 0  # too little to say anything
    else:
        assert result.promoted > 0.9


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in FOUND], ids=lambda s: s.name)
def test_a_candidate_that_is_clearly_worse_is_taken_back(scenario: Scenario) -> None:
    result = simulate(scenario, NUM_RUNS, seed=1)
    sys.stdout.write(f"{result.row()}\n")
    assert result.rolled_back > 0.9
